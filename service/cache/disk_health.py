"""Whether the cache's disk works: looked at when a write has failed, and again until one succeeds."""

import asyncio
import contextlib
import os
import secrets
from pathlib import Path

from service.cache.disk_budget import CacheRoom
from service.errors import InsufficientStorage, exhaustion_of

_PROBE_BYTES = 4096


class DiskHealth:
    """A failed write may be the fault of one large file; a small one that fails is the disk's."""

    def __init__(self, room: CacheRoom, retry_seconds: float) -> None:
        self.trouble: str | None = None
        """What is wrong with the disk, for people; None while it works."""
        self._room = room
        self._retry_seconds = retry_seconds
        self._watcher: asyncio.Task[None] | None = None

    def suspect(self) -> None:
        """A write has failed."""
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop looking."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    async def _watch(self) -> None:
        while (found := await self._probe()) is not None:
            self.trouble = found
            await asyncio.sleep(self._retry_seconds)
        self.trouble = None

    async def _probe(self) -> str | None:
        path = self._room.partials / f"{secrets.token_hex(8)}.part"
        try:
            await self._room.with_room(lambda: self._room.run(_write_and_delete, path))
        except InsufficientStorage as error:
            return error.detail
        except OSError as error:
            trouble = exhaustion_of(error)
            return trouble.detail if trouble is not None else "the disk of this machine does not work"
        return None


def _write_and_delete(path: Path) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(bytes(_PROBE_BYTES))
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
