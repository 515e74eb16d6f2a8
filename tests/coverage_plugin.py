"""A plug-in of coverage.py that measures processes which end badly.

What was measured is saved every second, because a process ended by SIGKILL saves nothing. And a process that a test
leaves no disk to save to says nothing of it: tests read standard error.
"""

import contextlib
import sqlite3
import sys
import threading
import time

import coverage
from coverage.plugin_support import Plugins
from coverage.types import TConfigurable

SAVE_INTERVAL_SECONDS = 1.0


def coverage_init(registry: Plugins, options: TConfigurable) -> None:
    """Start saving; coverage.py calls this in every measured process."""
    sys.unraisablehook = _report_unless_unsaved
    threading.Thread(target=_save_repeatedly, name="coverage", daemon=True).start()


def _save_repeatedly() -> None:
    while True:
        time.sleep(SAVE_INTERVAL_SECONDS)
        measurement = coverage.Coverage.current()
        if measurement is not None:
            with contextlib.suppress(Exception):
                measurement.save()


def _report_unless_unsaved(unraisable: "sys.UnraisableHookArgs") -> None:
    if not isinstance(unraisable.exc_value, coverage.CoverageException | sqlite3.Error):
        sys.__unraisablehook__(unraisable)
