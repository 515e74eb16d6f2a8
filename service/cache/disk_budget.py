"""How the cache's disk space is shared out, and what is evicted when there is too little.

A file that is being downloaded is expected to have a size, which a server or a request claims, and takes space as its
bytes are received. A claim alone evicts nothing: it is only refused when it can never be met. Files are evicted
for bytes that have been received.
"""

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

from service.cache.files import delete, is_open_in_a_process, is_out_of_inodes, side_file_of
from service.cache.index import CacheIndex, Entry
from service.download.file_threads import FileThreads
from service.download.partial_file import OUT_OF_SPACE
from service.errors import InsufficientStorage

T = TypeVar("T")


class DiskBudget:
    """The space of all files in the cache, those that are being downloaded included. One event loop."""

    def __init__(
        self, index: CacheIndex, threads: FileThreads, *, partials: Path, urls: Path, max_bytes: int
    ) -> None:
        self.index = index
        self.max_bytes = max_bytes
        self.expected_bytes = 0
        """The sizes that the files being downloaded are expected to have."""
        self.partial_bytes = 0
        """What they take of the disk now."""
        self.num_evictions = 0
        """Files that were deleted to make room."""
        self._threads = threads
        self._partials = partials
        self._urls = urls
        self._evicting = asyncio.Lock()

    @property
    def bytes_used(self) -> int:
        """By all files, those that are being downloaded included."""
        return self.index.total_bytes + self.partial_bytes

    async def free_disk_bytes(self) -> int:
        """What the file system has left for this process."""
        disk = await self._threads.run(os.statvfs, self._partials)
        return disk.f_bavail * disk.f_frsize

    async def evict_until(self, fits: Callable[[], bool]) -> None:
        """Evict files one by one until `fits` returns True. Raises InsufficientStorage, OSError."""
        async with self._evicting:
            while not fits():
                if not await self._evict_one():
                    raise InsufficientStorage("the cache is full of files that are in use")

    async def evict_if_idle(self, entry: Entry) -> None:
        """Evict one file, unless it is in use. Raises OSError."""
        async with self._evicting:
            if self.index.is_idle(entry):
                await self._evict(entry)

    async def retry_when_full(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work that writes to the disk; while the disk is full, evict a file and repeat it.

        Raises InsufficientStorage, and OSError where the disk does not work.
        """
        try:
            return await work()
        except OSError as error:
            if error.errno not in OUT_OF_SPACE:
                raise
        async with self._evicting:
            while True:  # the first repetition may use space that was freed for another file
                try:
                    return await work()
                except OSError as error:
                    if error.errno not in OUT_OF_SPACE:
                        raise
                    if error.errno == errno.EFBIG or not await self._free_disk():
                        raise InsufficientStorage("the disk has no room for the file") from error

    async def _free_disk(self) -> bool:
        """Evict a file because the disk is full; False if that would free nothing."""
        is_short_of_inodes = await self._threads.run(is_out_of_inodes, self._partials)
        return await self._evict_one(small=is_short_of_inodes, must_free_disk=True)

    async def _evict_one(self, *, small: bool = False, must_free_disk: bool = False) -> bool:
        """Evict the least recently used idle file; False if there is none.

        A file that a worker has mapped takes space on the disk until the worker unmaps it. So such files are
        evicted last, and with `must_free_disk` not at all.
        """
        in_use: dict[Entry, None] = {}
        while (entry := self.index.least_recently_used(small=small)) is not None and entry not in in_use:
            self.index.pin(entry)
            try:
                is_open = await self._threads.run(is_open_in_a_process, entry.path)
            finally:
                self.index.unpin(entry)
            if is_open:
                in_use[entry] = None
            elif self.index.is_idle(entry):
                await self._evict(entry)
                return True
        for entry in in_use:
            if not must_free_disk and self.index.is_idle(entry):
                await self._evict(entry)
                return True
        return False

    async def _evict(self, entry: Entry) -> None:
        trash = self._partials / f"{secrets.token_hex(8)}.evicted"
        with contextlib.suppress(FileNotFoundError):
            entry.path.rename(trash)  # frees the name at once; deleting gigabytes takes a while
        self.index.remove(entry)
        self.num_evictions += 1
        await self._threads.run(delete, trash, side_file_of(entry, self._urls))


class FileBudget:
    """The space of one file that is being downloaded. `release` it when the file is listed or deleted."""

    def __init__(self, budget: DiskBudget) -> None:
        self._budget = budget
        self._expected = 0
        self._taken = 0

    async def expect(self, num_bytes: int) -> None:
        """The file is expected to have `num_bytes` in all. Raises InsufficientStorage if it can never fit."""
        free = await self._budget.free_disk_bytes()
        budget, more = self._budget, num_bytes - self._expected
        if more <= 0:
            return
        still_to_write = more + budget.expected_bytes - budget.partial_bytes
        if still_to_write > free + budget.index.idle_bytes:
            raise InsufficientStorage("the disk has no room for the file")
        in_use = budget.index.total_bytes - budget.index.idle_bytes
        if in_use + budget.expected_bytes + more > budget.max_bytes:
            raise InsufficientStorage("the cache is full of files that are in use")
        budget.expected_bytes += more
        self._expected = num_bytes

    async def take(self, num_bytes: int) -> None:
        """The file takes `num_bytes` of the disk now. Evicts; raises InsufficientStorage, OSError."""
        if not self._try_to_take(num_bytes):
            await self._budget.evict_until(lambda: self._try_to_take(num_bytes))

    def _try_to_take(self, num_bytes: int) -> bool:
        more = max(0, num_bytes - self._taken)
        if self._budget.bytes_used + more > self._budget.max_bytes and more > 0:
            return False
        self._budget.partial_bytes += more
        self._taken += more
        return True

    async def retry_when_full(self, work: Callable[[], Awaitable[T]]) -> T:
        """See DiskBudget."""
        return await self._budget.retry_when_full(work)

    def release(self) -> None:
        """Give the space back."""
        self._budget.expected_bytes -= self._expected
        self._budget.partial_bytes -= self._taken
        self._expected = self._taken = 0
