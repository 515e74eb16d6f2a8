"""Removing files from a cache that a service may be using: both ends of how a command asks for it.

Without a service, the command takes the cache's lock and removes them itself. With one, it leaves a request in the
folder `remove`, named as the file; the service, which alone knows what its requests hold, evicts the file if it is
idle, and takes the request away.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from service.cache.disk_budget import DiskBudget
from service.cache.files import delete
from service.cache.folder import FILE_NAMES, take_lock
from service.cache.index import CacheIndex
from service.download.file_threads import FileThreads
from service.download.partial_note import note_path

_FOLDER = "remove"
_LOOK_EVERY_SECONDS = 0.5
_ANSWER_SECONDS = 15.0


class RemovalRequests:
    """Grants the requests of commands, as long as the service runs."""

    def __init__(self, directory: Path, index: CacheIndex, budget: DiskBudget, threads: FileThreads) -> None:
        self._folder = directory / _FOLDER
        self._index = index
        self._budget = budget
        self._threads = threads
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to look; requests that nobody waits for any more are forgotten."""
        for request in await self._threads.run(self._requests):
            await self._threads.run(delete, request)
        self._task = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Stop looking."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _requests(self) -> list[Path]:
        try:
            return [self._folder / name for name in os.listdir(self._folder)]
        except FileNotFoundError:  # nobody has ever asked
            return []

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY_SECONDS)
            with contextlib.suppress(OSError):  # of the disk: whoever writes files notices it too
                for request in await self._threads.run(self._requests):
                    await self._grant(request)

    async def _grant(self, request: Path) -> None:
        entry = self._index.get(request.name)
        if entry is not None:
            await self._budget.evict_if_idle(entry)
        await self._threads.run(delete, request)


def remove_blobs(directory: Path, names: Sequence[str]) -> list[str]:
    """Remove these complete files from a cache, whether a service uses it or not; those that are still there.

    What a service has in use stays. Raises OSError; TimeoutError where a service does not respond.
    """
    lock = take_lock(directory)
    if lock is None:
        _ask(directory / _FOLDER, names)
    else:
        try:
            for name in names:
                delete(directory / "blobs" / name, directory / "urls" / f"{name}.urls")
        finally:
            os.close(lock)
    return [name for name in names if (directory / "blobs" / name).exists()]


def remove_partials(directory: Path, names: Iterable[str]) -> bool:
    """Remove what interrupted downloads have left; False, and nothing, while a service uses the cache."""
    lock = take_lock(directory)
    if lock is None:
        return False
    try:
        for name in names:
            path = directory / "partial" / name
            delete(path, note_path(path))
    finally:
        os.close(lock)
    return True


def _ask(folder: Path, names: Sequence[str]) -> None:
    requests = [folder / name for name in names if FILE_NAMES["blobs"].fullmatch(name)]
    folder.mkdir(mode=0o700, exist_ok=True)
    try:
        for request in requests:
            request.touch(mode=0o600)
        end = time.monotonic() + _ANSWER_SECONDS
        while any(request.exists() for request in requests):
            if time.monotonic() > end:
                raise TimeoutError("the service that uses this data folder does not respond")
            time.sleep(0.05)
    finally:
        delete(*requests)
