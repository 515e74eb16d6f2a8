"""A plug-in of coverage.py that saves what was measured every second: a process ended by SIGKILL cannot."""

import contextlib
import threading
import time

import coverage
from coverage.plugin_support import Plugins
from coverage.types import TConfigurable

SAVE_INTERVAL_SECONDS = 1.0


def coverage_init(registry: Plugins, options: TConfigurable) -> None:
    """Start saving; coverage.py calls this in every measured process."""
    threading.Thread(target=_save_repeatedly, name="coverage", daemon=True).start()


def _save_repeatedly() -> None:
    while True:
        time.sleep(SAVE_INTERVAL_SECONDS)
        measurement = coverage.Coverage.current()
        if measurement is not None:
            with contextlib.suppress(
                Exception
            ):  # a test may leave this process no file or memory to save with
                measurement.save()
