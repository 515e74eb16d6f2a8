"""What a process asks the system for about itself (Linux; elsewhere nothing happens)."""

import contextlib
import ctypes
import os
import resource
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4

_OUT_OF_MEMORY_SCORE = 800
"""Of 1000: a worker is ended for memory before the service that started it, whatever each of them takes."""


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel end this process when the parent's ends, however it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before the kernel knew
        os._exit(0)


def be_ended_first_for_memory() -> None:
    """When the system runs out of memory, let it end this process before the others.

    Must come before `keep_memory_private`, after which only root may write what it writes.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OUT_OF_MEMORY_SCORE))


def keep_memory_private() -> None:
    """Write no core file, and let only root look inside: keys and decrypted weights are in this memory.

    A process that is started from here must call this itself. What it costs: only root can attach a debugger or
    a profiler, or list this process's open files.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _prctl(_PR_SET_DUMPABLE, 0)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
