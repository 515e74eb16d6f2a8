"""The files of the cache on disk: which are complete, which can be resumed, and the space that they take.

All work on files runs in threads. An error of the disk is raised as a ServiceTrouble.
"""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator
from pathlib import Path

from service.blob import BlobRef
from service.cache.disk_budget import DiskBudget, FileBudget
from service.cache.disk_health import DiskHealth
from service.cache.files import delete, remember_url, side_file_of, touch, was_delivered_by, write_file
from service.cache.folder import lock
from service.cache.index import PARTIAL_SUFFIX, CacheIndex, Entry
from service.cache.removal import RemovalRequests
from service.cache.sweep import resumable_entry, sweep
from service.checksum import checksum_of
from service.download.file_threads import FileThreads
from service.download.partial_file import PartialFile
from service.download.throughput import DownloadLimits
from service.errors import BlobUnavailable, DownloadTimeout, InsufficientStorage, OutOfResources

_ALLOCATED_WRITES = 4
"""Disk space is allocated for so many writes at once."""


class BlobStore:
    """The files under one directory, in which it holds the lock. `start` before use, `close` after."""

    def __init__(self, directory: Path, *, max_bytes: int, retry_seconds: float) -> None:
        self._directory = directory
        self._blobs = directory / "blobs"
        self._partials = directory / "partial"
        self._urls = directory / "urls"
        self._threads = FileThreads()
        self._lock_fd = -1
        self.index = CacheIndex()
        self.budget = DiskBudget(
            self.index, self._threads, partials=self._partials, urls=self._urls, max_bytes=max_bytes
        )
        self._removals = RemovalRequests(directory, self.index, self.budget, self._threads)
        self.health = DiskHealth(self.budget, self._threads, self._partials, retry_seconds=retry_seconds)

    async def start(self) -> None:
        """See BlobCache."""
        try:
            self._threads.start()
        except RuntimeError as error:
            raise OSError("this machine is out of threads") from error
        await self._threads.run(self._lock)
        for entry in sorted(
            await self._threads.run(sweep, self._directory), key=lambda entry: entry.last_used
        ):
            self.index.add(entry)
        with contextlib.suppress(InsufficientStorage):
            await self.budget.evict_until(lambda: self.budget.bytes_used <= self.budget.max_bytes)
        await self._removals.start()

    def _lock(self) -> None:
        """In a thread, which stores the descriptor itself: a cancelled caller does not receive a result."""
        self._lock_fd = lock(self._directory)

    async def close(self) -> None:
        """Wait for the last thread, give the lock back."""
        await self._removals.close()
        await self.health.close()
        self._threads.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # -- complete files --------------------------------------------------------------------------------

    def delivered(self, blob: BlobRef) -> Entry | None:
        """The entry of a blob whose URL has delivered these very bytes before."""
        entry = self.index.get(blob.checksum or "")
        if entry is None or not was_delivered_by(entry, self._urls, _digest(blob)):
            return None
        return entry

    async def find(self, checksum: str) -> Entry | None:
        """The entry of a complete file, with a pin for the caller, if the file is still as it was."""
        entry = self.index.get(checksum)
        if entry is None:
            return None
        self.index.pin(entry)
        try:
            with self.health.translate_errors():
                is_intact = await self._threads.run(touch, entry.path, entry.size)
        except BaseException:
            self.index.unpin(entry)
            raise
        if is_intact:
            return entry
        self.index.remove(entry)
        self.index.unpin(entry)
        return None

    async def publish(self, blob: BlobRef, partial: PartialFile, checksum: str, size: int) -> Entry:
        """List a verified file under its checksum; its entry, with a pin for the caller.

        If another URL has delivered the same bytes, that file is used. Raises InsufficientStorage, OSError.
        """
        entry = await self.find(checksum)
        if entry is None:
            entry = await self._publish(Entry(self._blobs, checksum, size, time.time()), blob, partial)
        try:
            await self._threads.run(remember_url, entry, self._urls, _digest(blob))
        except BaseException:
            self.index.unpin(entry)
            raise
        return entry

    async def _publish(self, new: Entry, blob: BlobRef, partial: PartialFile) -> Entry:
        """The URL is remembered first: what a kill leaves in between is a note too much, not a second download."""
        await self._threads.run(remember_url, new, self._urls, _digest(blob))
        try:
            await partial.publish(new.path, new.size)
        except Exception:  # a cancelled caller's thread may still publish it
            if self.index.get(new.name) is None:
                await self._threads.run(delete, side_file_of(new, self._urls))
            raise
        entry = self.index.get(new.name)  # another URL's download may have been faster
        if entry is None:
            entry = new
            self.index.add(entry)
        self.index.pin(entry)
        return entry

    # -- other files -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def partial_file(
        self, name: str, limits: DownloadLimits, *, is_resumable: bool
    ) -> AsyncIterator[PartialFile]:
        """An open partial file, with the bytes that another attempt left under this name if it can be resumed.

        At the end it is deleted unless it has been published; with `is_resumable` it is kept after a failure that
        another attempt may not have.
        """
        path = self._partials / f"{name}{PARTIAL_SUFFIX}"
        if (left := self.index.get(path.name)) is not None:
            self.index.remove(left)
        partial = PartialFile(
            path,
            FileBudget(self.budget),
            self._threads.pool,
            is_resumable=is_resumable,
            sync_bytes=limits.sync_bytes,
            allocation_bytes=_ALLOCATED_WRITES * limits.write_bytes,
        )
        keep = False
        try:
            with self.health.translate_errors():
                await partial.open()
                yield partial
        except (BlobUnavailable, DownloadTimeout, OutOfResources, asyncio.CancelledError):
            keep = is_resumable
            raise
        finally:
            try:
                await partial.close(keep=keep)
            finally:
                if keep:
                    self._list_resumable(path)

    def _list_resumable(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            entry = resumable_entry(path)
            if entry is not None:
                self.index.add(entry)

    @contextlib.asynccontextmanager
    async def temporary_file(self, data: bytes) -> AsyncIterator[Path]:
        """A file with these bytes, deleted at the end. Raises InsufficientStorage, OutOfResources."""
        path = self._partials / f"{secrets.token_hex(8)}{PARTIAL_SUFFIX}"
        budget = FileBudget(self.budget)
        try:
            with self.health.translate_errors():
                await budget.expect(len(data))
                await budget.take(len(data))
                await budget.retry_when_full(lambda: self._threads.run(write_file, path, data))
            yield path
        finally:
            with contextlib.suppress(OSError):  # the sweep at the next start finds it
                await self._threads.run(delete, path)
            budget.release()

    async def checksum_of(self, data: bytes) -> str:
        """The checksum of bytes in memory."""
        return await self._threads.run(checksum_of, data)


def _digest(blob: BlobRef) -> str:
    return checksum_of(blob.url.encode())
