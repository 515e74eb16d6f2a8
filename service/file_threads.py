"""Threads for the work on files, and which of them come first.

The checksum is the longest step of a fast download and cannot be divided: whatever holds it up makes the whole
download longer. So hashing has threads of its own, and the threads that write and sync step aside for them.
"""

import contextlib
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

_NUM_FILE_THREADS = 4 + (os.cpu_count() or 1)
_NUM_HASH_THREADS = max(2, os.cpu_count() or 1)
_YIELDING_NICENESS = 5


class FileThreads:
    """Two pools. `close` at the end."""

    def __init__(self) -> None:
        self.files = ThreadPoolExecutor(_NUM_FILE_THREADS, "files", initializer=_step_aside)
        """Whatever waits for a disk."""
        self.hashing = ThreadPoolExecutor(_NUM_HASH_THREADS, "hashing")
        """Whatever computes a checksum."""

    def close(self) -> None:
        """Wait for the last job of each."""
        self.files.shutdown(wait=True)
        self.hashing.shutdown(wait=True)


def _step_aside() -> None:
    """Give this thread, and no other of the process, a lower priority. Only Linux can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _YIELDING_NICENESS)
