"""Threads for the work on files: reading, writing, hashing."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_NUM_THREADS = 4 + 2 * (os.cpu_count() or 1)


class FileThreads:
    """A pool of threads. `start` it before use: later the system may have no thread left. `close` at the end."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(_NUM_THREADS, "files")

    def start(self) -> None:
        """Start every thread. Raises RuntimeError where the system has none left."""
        # The pool starts a thread for a job only while no thread is idle: these jobs keep their threads busy.
        all_started = threading.Barrier(_NUM_THREADS + 1)
        try:
            for _ in range(_NUM_THREADS):
                self.pool.submit(_wait_for, all_started)
            all_started.wait()
        finally:
            all_started.abort()

    def close(self) -> None:
        """Wait until the last job has ended."""
        self.pool.shutdown(wait=True)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in a thread, to its end: a cancelled caller waits too, and then knows what was done."""
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self.pool, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            while not job.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([job])
            raise


def _wait_for(barrier: threading.Barrier) -> None:
    with contextlib.suppress(threading.BrokenBarrierError):
        barrier.wait()
