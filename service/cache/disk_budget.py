"""How the cache's room is shared out, and what is evicted when there is too little.

A file on its way in is expected to have a size, which a server or a request claims, and takes room as its bytes
come. A claim alone evicts nothing: it is only refused when it cannot be met. Files are evicted for bytes that are
here.
"""

import asyncio
import contextlib
import errno
import os
import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import ParamSpec, Protocol, TypeVar

from service.cache.folder import delete, is_held_by_a_process, is_out_of_inodes, note_of
from service.cache.index import CacheIndex, Entry
from service.download.partial_file import OUT_OF_SPACE
from service.errors import InsufficientStorage

P = ParamSpec("P")
T = TypeVar("T")


class RunInThread(Protocol):
    """Runs a function of the file system in a thread, to its end."""

    def __call__(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]: ...


class CacheRoom:
    """What the files in the cache and those on their way in take. One event loop."""

    def __init__(
        self, index: CacheIndex, partials: Path, urls: Path, run: RunInThread, max_bytes: int
    ) -> None:
        self.index = index
        self.partials = partials
        self.run = run
        self.max_bytes = max_bytes
        self.expected_bytes = 0
        """What the files on their way in will have in all, by what is claimed."""
        self.arrived_bytes = 0
        """What they take of the disk now."""
        self._urls = urls
        self._evicting = asyncio.Lock()

    @property
    def bytes_used(self) -> int:
        """What is in the cache, unfinished files included."""
        return self.index.total_bytes + self.arrived_bytes

    async def free_disk_bytes(self) -> int:
        """What the file system has left for us."""
        disk = await self.run(os.statvfs, self.partials)
        return disk.f_bavail * disk.f_frsize

    async def evict_until(self, fits: Callable[[], bool]) -> None:
        """Evict, for one file at a time, until it fits. Raises InsufficientStorage, OSError."""
        async with self._evicting:
            while not fits():
                if not await self._evict_one():
                    raise InsufficientStorage("the cache is full of files that are in use")

    async def _evict_one(self, *, small: bool = False, must_free_disk: bool = False) -> bool:
        """Delete the least recently used file that is idle; False if there is none.

        A file that a worker has mapped takes its room on the disk until the worker lets go of it. So it comes
        last, and with `must_free_disk` it is not evicted at all.
        """
        held: dict[Entry, None] = {}
        while (entry := self.index.least_recently_used(small=small)) is not None and entry not in held:
            self.index.pin(entry)
            try:
                is_held = await self.run(is_held_by_a_process, entry.path)
            finally:
                self.index.unpin(entry)
            if is_held:
                held[entry] = None
            elif entry.num_pins == 0 and self.index.holds(entry):
                await self._evict(entry)
                return True
        for entry in held:
            if not must_free_disk and entry.num_pins == 0 and self.index.holds(entry):
                await self._evict(entry)
                return True
        return False

    async def with_room(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what needs room on the disk. Where it is full, evict and try again, one piece of work at a time.

        Raises InsufficientStorage, and OSError where the disk is broken.
        """
        try:
            return await work()
        except OSError as error:
            if error.errno not in OUT_OF_SPACE:
                raise
        async with self._evicting:
            while True:  # it may find the room that was made for another
                try:
                    return await work()
                except OSError as error:
                    if error.errno not in OUT_OF_SPACE:
                        raise
                    if error.errno == errno.EFBIG or not await self._free_some():
                        raise InsufficientStorage("the disk has no room for the file") from error

    async def _free_some(self) -> bool:
        """Evict something because the disk is full; False when that would free nothing."""
        is_short_of_inodes = await self.run(is_out_of_inodes, self.partials)
        return await self._evict_one(small=is_short_of_inodes, must_free_disk=True)

    async def _evict(self, entry: Entry) -> None:
        trash = self.partials / f"{secrets.token_hex(8)}.evicted"
        with contextlib.suppress(FileNotFoundError):
            entry.path.rename(trash)  # at once, so that the name is free; deleting gigabytes takes a while
        self.index.remove(entry)
        await self.run(delete, trash, note_of(entry, self._urls))


class FileRoom:
    """The room of one file on its way in. `close` at the end: the file is listed by then, or deleted."""

    def __init__(self, room: CacheRoom) -> None:
        self._room = room
        self._expected = 0
        self._arrived = 0

    async def expect(self, num_bytes: int) -> None:
        """The file will have `num_bytes` in all. Raises InsufficientStorage if it never fits."""
        free = await self._room.free_disk_bytes()
        room, more = self._room, num_bytes - self._expected
        if more <= 0:
            return
        still_to_come = more + room.expected_bytes - room.arrived_bytes
        if still_to_come > free + room.index.idle_bytes:
            raise InsufficientStorage("the disk has no room for the file")
        in_use = room.index.total_bytes - room.index.idle_bytes
        if in_use + room.expected_bytes + more > room.max_bytes:
            raise InsufficientStorage("the cache is full of files that are in use")
        room.expected_bytes += more
        self._expected = num_bytes

    async def take(self, num_bytes: int) -> None:
        """The file takes `num_bytes` of the disk now. Evicts; raises InsufficientStorage, OSError."""
        if not self._try_to_take(num_bytes):
            await self._room.evict_until(lambda: self._try_to_take(num_bytes))

    def _try_to_take(self, num_bytes: int) -> bool:
        more = max(0, num_bytes - self._arrived)
        if self._room.bytes_used + more > self._room.max_bytes and more > 0:
            return False
        self._room.arrived_bytes += more
        self._arrived += more
        return True

    async def with_room(self, work: Callable[[], Awaitable[T]]) -> T:
        """See CacheRoom."""
        return await self._room.with_room(work)

    def close(self) -> None:
        """Give the room back."""
        self._room.expected_bytes -= self._expected
        self._room.arrived_bytes -= self._arrived
        self._expected = self._arrived = 0
