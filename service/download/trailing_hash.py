"""The checksum of a file while it is being written: one task reads and hashes what lies behind the writer.

Bytes may be written in any order; the unbroken run of bytes from the start of the file is hashed as it grows. It is
read back from the file, which means from the system's page cache unless memory is short.
"""

import asyncio
import errno
import functools
import os
from collections.abc import Awaitable, Callable

from service.checksum import Hasher

RunInThread = Callable[[Callable[[], None]], Awaitable[None]]

_READ_BYTES = 1 << 20
_JOB_BYTES = 16 << 20
"""A job is this long at most, so that another file's job gets the thread soon."""


class TrailingHash:
    """Blake2b-256 of one open file. `follow` runs for as long as the file is being written."""

    def __init__(self, fd: int, run_in_thread: RunInThread) -> None:
        self._fd = fd
        self._run_in_thread = run_in_thread
        self._hasher = Hasher()
        self._num_hashed = 0
        self._num_written = 0
        self._size: int | None = None
        self._has_work = asyncio.Event()

    @property
    def num_behind(self) -> int:
        """How many bytes are written in an unbroken run and not hashed yet."""
        return self._num_written - self._num_hashed

    def advance(self, num_written: int) -> None:
        """The unbroken run of bytes from the start of the file now has this length."""
        self._num_written = num_written
        self._has_work.set()

    def finish(self, size: int) -> None:
        """Let `follow` return when the first `size` bytes are hashed."""
        self._size = size
        self._has_work.set()

    async def follow(self) -> None:
        """Hash bytes as they are written. Raises OSError."""
        while self._num_hashed != self._size:
            await self._has_work.wait()
            self._has_work.clear()
            while self._num_hashed < self._num_written:
                end = min(self._num_hashed + _JOB_BYTES, self._num_written)
                await self._run_in_thread(functools.partial(self._hash_up_to, end))

    def checksum(self) -> str:
        """The checksum, after `follow` has returned."""
        return self._hasher.checksum()

    def _hash_up_to(self, end: int) -> None:
        """In a thread."""
        while self._num_hashed < end:
            data = os.pread(self._fd, min(_READ_BYTES, end - self._num_hashed), self._num_hashed)
            if not data:
                raise OSError(errno.EIO, "the file has become shorter")
            self._hasher.update(data)
            self._num_hashed += len(data)
