"""A plug-in of coverage.py for processes that a test leaves no disk to save to: they say nothing of it.

Tests read standard error. What a process ended by SIGKILL has run is not counted: saving again and again from a
thread disturbs what is measured, and may crash a process that ends.
"""

import sqlite3
import sys

import coverage
from coverage.plugin_support import Plugins
from coverage.types import TConfigurable


def coverage_init(registry: Plugins, options: TConfigurable) -> None:
    """coverage.py calls this in every measured process."""
    sys.unraisablehook = _report_unless_unsaved


def _report_unless_unsaved(unraisable: "sys.UnraisableHookArgs") -> None:
    if not isinstance(unraisable.exc_value, coverage.CoverageException | sqlite3.Error):
        sys.__unraisablehook__(unraisable)
