"""Keeps keys and decrypted weights in this process's memory: no core file, no look from another process."""

import ctypes
import resource
import sys

_PR_SET_DUMPABLE = 4


def protect_process() -> None:
    """Write no core file, here or in processes started from now on; on Linux let nobody but root look inside.

    A process that is started from here can be looked into again: it has to call this itself. What it costs: only
    root can attach a debugger or a profiler, or list this process's open files.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
