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
    """Two pools. `start` them before use: later the system may have no thread left. `close` at the end."""

    def __init__(self) -> None:
        self.files = ThreadPoolExecutor(_NUM_FILE_THREADS, "files", initializer=_step_aside)
        """Whatever waits for a disk."""
        self.hashing = ThreadPoolExecutor(_NUM_HASH_THREADS, "hashing")
        """Whatever computes a checksum."""

    def start(self) -> None:
        """Start every thread. Raises RuntimeError where the system has none left."""
        _start_all(self.files, _NUM_FILE_THREADS)
        _start_all(self.hashing, _NUM_HASH_THREADS)

    def close(self) -> None:
        """Wait for the last job of each."""
        self.files.shutdown(wait=True)
        self.hashing.shutdown(wait=True)


def _start_all(pool: ThreadPoolExecutor, num_threads: int) -> None:
    """A pool starts a thread for a job while none of its threads is idle: these jobs keep theirs busy."""
    all_started = threading.Barrier(num_threads + 1)
    try:
        for _ in range(num_threads):
            pool.submit(_wait_for, all_started)
        all_started.wait()
    finally:
        all_started.abort()


def _wait_for(barrier: threading.Barrier) -> None:
    with contextlib.suppress(threading.BrokenBarrierError):
        barrier.wait()


def _step_aside() -> None:
    """Give this thread, and no other of the process, a lower priority. Only Linux can."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _YIELDING_NICENESS)
