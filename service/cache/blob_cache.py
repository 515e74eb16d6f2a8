"""Blobs on disk, as published, each named by its verified checksum. Nothing decrypted ever lies here.

What is in use is pinned and stays; the rest is evicted, oldest use first, when room is needed.
"""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from service.blob import BlobRef
from service.cache.disk_budget import CacheRoom, FileRoom
from service.cache.disk_health import DiskHealth
from service.cache.folder import (
    CacheInUse,
    ForeignFolder,
    delete,
    leftover_at,
    lock,
    note_url,
    sweep,
    touch,
    was_delivered,
    write_file,
)
from service.cache.index import CacheIndex, Entry
from service.checksum import checksum_of, is_checksum
from service.download.downloader import Downloader
from service.download.file_threads import FileThreads
from service.download.partial_file import PartialFile
from service.download.throughput import DownloadLimits, DownloadProgress, OnDownloadProgress
from service.errors import (
    BlobError,
    BlobKind,
    BlobTooLarge,
    BlobUnavailable,
    ChecksumMismatch,
    DownloadTimeout,
    Draining,
    InsufficientStorage,
    OutOfResources,
    SizeMismatch,
    exhaustion_of,
)

__all__ = ["BlobCache", "CacheInUse", "CachedBlob", "ForeignFolder"]

_HASHED_AT_ONCE_BYTES = 1 << 16
"""So little is hashed before a thread would have begun."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """A verified file, there as long as its with-block."""

    path: Path
    checksum: str
    """Blake2b-256 in Base58, computed from the bytes."""
    size: int
    """Bytes."""
    was_cached: bool
    """True where nothing had to be downloaded or written for it."""
    download_seconds: float
    """How long it took to get here, waiting for another request's download included."""


@dataclass(frozen=True, slots=True)
class _Terms:
    """All that a verdict on a download may depend on, beside the bytes that come."""

    blob: BlobRef
    kind: BlobKind
    max_bytes: int


@dataclass(eq=False, slots=True)
class _Flight:
    """One download and all who wait for it."""

    terms: _Terms
    task: "asyncio.Task[Entry]" = field(init=False)
    listeners: set[OnDownloadProgress] = field(default_factory=set)
    num_waiters: int = 0
    is_abandoned: bool = False
    is_publishing: bool = False
    is_released: bool = False

    def abandon(self) -> None:
        """End it, unless only the name is missing."""
        self.is_abandoned = True
        if not self.is_publishing:
            self.task.cancel()

    def tell(self, progress: DownloadProgress) -> None:
        """Tell every waiter; one whose callback fails harms no other."""
        for listener in self.listeners:
            asyncio.get_running_loop().call_soon(listener, progress)


class BlobCache:
    """Content-addressed blobs under one directory. `start` before use, `close` after; one event loop.

    `max_bytes` bounds what lies there, unfinished downloads included. Where a write fails, the disk is looked at
    every `retry_seconds` until it works again.
    """

    def __init__(
        self, directory: Path, downloader: Downloader, *, max_bytes: int, retry_seconds: float = 5.0
    ) -> None:
        self._directory = directory
        self._blobs = directory / "blobs"
        self._partials = directory / "partial"
        self._urls = directory / "urls"
        self._downloader = downloader
        self._index = CacheIndex()
        self._room = CacheRoom(self._index, self._partials, self._urls, self._run, max_bytes)
        self._health = DiskHealth(self._room, retry_seconds)
        self._flights: dict[str, _Flight] = {}
        self._threads = FileThreads()
        self._lock_fd = -1
        self._closing = False

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the folders, take the lock, delete what a crash left behind except what can be gone on with.

        Raises CacheInUse if another service has the lock, ForeignFolder if the directory holds files of
        somebody else's, OSError if it cannot be used.
        """
        try:
            self._threads.start()
        except RuntimeError as error:
            raise OSError("this machine is out of threads") from error
        await self._run(self._take_lock)
        for entry in sorted(await self._run(sweep, self._directory), key=lambda entry: entry.last_used):
            self._index.add(entry)
        with contextlib.suppress(InsufficientStorage):
            await self._room.evict_until(lambda: self.bytes_used <= self._room.max_bytes)

    async def close(self) -> None:
        """End every download, wait for the last thread, give the lock back."""
        self._closing = True
        flights = list(self._flights.values())
        for flight in flights:
            flight.abandon()
        await asyncio.gather(*(flight.task for flight in flights), return_exceptions=True)
        await self._health.close()
        self._threads.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _take_lock(self) -> None:
        """In a thread, which notes the descriptor by itself: a cancelled start hears of nothing."""
        self._lock_fd = lock(self._directory)

    # -- what is here ----------------------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """What is wrong with the disk, for people; None while it takes what is written."""
        return self._health.trouble

    @property
    def bytes_used(self) -> int:
        """What lies in the directory, unfinished downloads included."""
        return self._room.bytes_used

    async def room_bytes(self) -> int:
        """What the cache can hold when nothing is in use: its limit, or less on a small disk."""
        return min(self._room.max_bytes, self.bytes_used + await self._room.free_disk_bytes())

    # -- use -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def fetch(
        self,
        blob: BlobRef,
        *,
        kind: BlobKind,
        max_bytes: int,
        on_progress: OnDownloadProgress | None = None,
    ) -> AsyncIterator[CachedBlob]:
        """The blob's file, from the cache or downloaded; it stays while inside the with-block.

        A file is taken from the cache for a URL that has delivered these very bytes before. Any other URL
        must deliver them first: whether the cache happens to hold them must not change a verdict.
        `on_progress` is called on the event loop. Raises what Downloader.download raises, and OutOfResources
        where the disk does not work.
        """
        self._check(blob, kind, max_bytes)
        self._check_open()
        began = time.monotonic()
        terms = _Terms(blob, kind, max_bytes)
        entry, was_cached = await self._obtain(terms, on_progress)
        try:
            _check_entry(entry, terms)
            seconds = 0.0 if was_cached else time.monotonic() - began
            yield CachedBlob(entry.path, entry.name, entry.size, was_cached, seconds)
        finally:
            self._index.unpin(entry)

    @contextlib.asynccontextmanager
    async def hold(self, data: bytes) -> AsyncIterator[CachedBlob]:
        """A file with these bytes while inside the with-block; nothing is left of it after.

        Raises InsufficientStorage, OutOfResources.
        """
        self._check_open()
        began = time.monotonic()
        checksum = await self._checksum_of(data)
        path = self._partials / f"{secrets.token_hex(8)}.part"
        room = FileRoom(self._room)
        try:
            with self._disk_errors():
                await self._write(path, data, room)
            yield CachedBlob(path, checksum, len(data), False, time.monotonic() - began)
        finally:
            with contextlib.suppress(OSError):  # the sweep at the next start finds it
                await self._run(delete, path)
            room.close()

    @property
    def download_limits(self) -> DownloadLimits:
        """What a download is held to."""
        return self._downloader.limits

    async def is_online(self) -> bool:
        """Whether anything at all can be downloaded from here: see Downloader."""
        return await self._downloader.is_online()

    def size_of(self, blob: BlobRef) -> int | None:
        """Bytes of a blob that `fetch` would find here without a download; None if it is not here."""
        entry = self._delivered(blob)
        return None if entry is None else entry.size

    def _check(self, blob: BlobRef, kind: BlobKind, max_bytes: int) -> None:
        """What can be said without the network, and so is said whether the blob is here or not."""
        self._downloader.check_url(blob.url, kind)
        if blob.checksum is not None and not is_checksum(blob.checksum):
            raise ChecksumMismatch("what was promised is not 32 bytes in Base58", blob=kind)
        if blob.size is not None and blob.size > max_bytes:
            raise BlobTooLarge(f"the file has more than {max_bytes} bytes", blob=kind)

    def _check_open(self) -> None:
        if self._closing:
            raise Draining("the service is stopping")

    # -- finding, waiting, downloading -----------------------------------------------------------------

    async def _obtain(self, terms: _Terms, on_progress: OnDownloadProgress | None) -> tuple[Entry, bool]:
        """A pinned entry, and whether it was here."""
        blob = terms.blob
        name = download_name(blob)
        while True:
            if (entry := await self._find_delivered(blob)) is not None:
                return entry, True
            flight = self._flights.get(name)
            if flight is None:
                return await self._wait(self._start_download(terms, name), on_progress), False
            if flight.is_abandoned:
                await asyncio.wait([flight.task])
            elif flight.terms == terms:
                return await self._wait(flight, on_progress), False
            else:  # the same URL with another promise: their failure is not ours
                with contextlib.suppress(BlobError):
                    return await self._wait(flight, on_progress), False

    async def _find_delivered(self, blob: BlobRef) -> Entry | None:
        """The entry, pinned, if it is here and this URL has delivered it."""
        entry = self._delivered(blob)
        return None if entry is None else await self._find(entry.name)

    def _delivered(self, blob: BlobRef) -> Entry | None:
        entry = self._index.get(blob.checksum or "")
        if entry is None or not was_delivered(entry, self._urls, checksum_of(blob.url.encode())):
            return None
        return entry

    async def _find(self, checksum: str) -> Entry | None:
        """The entry, pinned, if it is here and its file still is what it was."""
        entry = self._index.get(checksum)
        if entry is None:
            return None
        self._index.pin(entry)
        try:
            with self._disk_errors():
                intact = await self._run(touch, entry.path, entry.size)
        except BaseException:
            self._index.unpin(entry)
            raise
        if intact:
            return entry
        self._index.remove(entry)
        self._index.unpin(entry)
        return None

    def _start_download(self, terms: _Terms, name: str) -> _Flight:
        self._check_open()
        flight = _Flight(terms)
        flight.task = asyncio.create_task(self._download(flight, name))
        self._flights[name] = flight
        flight.task.add_done_callback(lambda task: self._end_download(name, flight))
        return flight

    def _end_download(self, name: str, flight: _Flight) -> None:
        del self._flights[name]
        if flight.num_waiters == 0:
            self._release(flight)

    def _release(self, flight: _Flight) -> None:
        """The last has left a flight that is over: drop its own pin, once."""
        if flight.is_released:
            return
        flight.is_released = True
        if not flight.task.cancelled() and flight.task.exception() is None:
            self._index.unpin(flight.task.result())

    async def _wait(self, flight: _Flight, on_progress: OnDownloadProgress | None) -> Entry:
        """The flight's entry, pinned for the caller. The last to leave an unfinished flight ends it."""
        flight.num_waiters += 1
        if on_progress is not None:
            flight.listeners.add(on_progress)
        try:
            await asyncio.wait([flight.task])
            if flight.task.cancelled():
                raise Draining("the service is stopping")
            if (failure := flight.task.exception()) is not None:
                raise _copy_of(failure) from None
            entry = flight.task.result()
            self._index.pin(entry)
            return entry
        finally:
            flight.num_waiters -= 1
            if on_progress is not None:
                flight.listeners.discard(on_progress)
            if flight.num_waiters == 0 and flight.task.done():
                self._release(flight)
            elif flight.num_waiters == 0:
                flight.abandon()

    async def _download(self, flight: _Flight, name: str) -> Entry:
        """Download, verify, publish: an entry, pinned once."""
        path = self._partials / f"{name}.part"
        is_resumable = flight.terms.blob.checksum is not None
        if (leftover := self._index.get(path.name)) is not None:
            self._index.remove(leftover)
        limits = self._downloader.limits
        room = FileRoom(self._room)
        partial = PartialFile(
            path,
            room,
            self._threads,
            is_resumable=is_resumable,
            checkpoint_bytes=limits.checkpoint_bytes,
            write_bytes=limits.write_bytes,
        )
        keep = False
        try:
            with self._disk_errors():
                return await self._fill_and_publish(flight, partial, room)
        except (BlobUnavailable, DownloadTimeout, OutOfResources, asyncio.CancelledError):
            keep = is_resumable
            raise
        finally:
            try:
                await partial.close(keep=keep)
            finally:
                room.close()
                if keep:
                    self._remember_leftover(path)

    async def _fill_and_publish(self, flight: _Flight, partial: PartialFile, room: FileRoom) -> Entry:
        terms = flight.terms
        await partial.open()
        found = await self._downloader.download(
            terms.blob, partial, kind=terms.kind, max_bytes=terms.max_bytes, on_progress=flight.tell
        )
        flight.is_publishing = True
        entry = await self._find(found.checksum)  # the same bytes came from elsewhere: one file is enough
        if entry is None:
            await partial.publish(self._blobs / found.checksum, found.size)
            room.close()
            entry = self._admit(found.checksum, found.size)
        try:
            await self._run(note_url, self._urls, entry, checksum_of(terms.blob.url.encode()))
        except BaseException:
            self._index.unpin(entry)
            raise
        return entry

    def _remember_leftover(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            leftover = leftover_at(path)
            if leftover is not None:
                self._index.add(leftover)

    def _admit(self, checksum: str, size: int) -> Entry:
        entry = self._index.get(checksum)
        if entry is None:
            entry = Entry(self._blobs, checksum, size, time.time())
            self._index.add(entry)
        self._index.pin(entry)
        return entry

    async def _write(self, path: Path, data: bytes, room: FileRoom) -> None:
        await room.expect(len(data))
        await room.take(len(data))
        await room.with_room(lambda: self._run(write_file, path, data))

    # -- trouble ---------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        """Raise an error of this service's for one of the disk: no publisher is at fault."""
        try:
            yield
        except OSError as error:
            self._health.suspect()
            raise exhaustion_of(error) or OutOfResources("the disk of this machine does not work") from error
        except (RuntimeError, MemoryError) as error:
            if (trouble := exhaustion_of(error)) is not None:
                raise trouble from error
            raise
        except InsufficientStorage as error:
            if isinstance(error.__cause__, OSError):
                self._health.suspect()
            raise

    # -- threads ---------------------------------------------------------------------------------------

    async def _checksum_of(self, data: bytes) -> str:
        if len(data) <= _HASHED_AT_ONCE_BYTES:
            return checksum_of(data)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads.hashing, checksum_of, data)

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in a thread, to its end: a cancelled caller waits too, and knows then what there is."""
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._threads.files, lambda: function(*args, **kwargs))
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            while not job.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([job])
            raise


def download_name(blob: BlobRef) -> str:
    """One for each URL and promised checksum, so that another attempt finds what is left of the last."""
    if blob.checksum is None:
        return secrets.token_hex(8)
    return checksum_of(f"{blob.checksum} {blob.url}".encode())


def _check_entry(entry: Entry, terms: _Terms) -> None:
    """The same verdict on a blob that is here as on one that is downloaded."""
    if entry.size > terms.max_bytes:
        raise BlobTooLarge(f"the file has more than {terms.max_bytes} bytes", blob=terms.kind)
    if terms.blob.size not in (None, entry.size):
        raise SizeMismatch(f"the file has {entry.size} bytes, not the number promised", blob=terms.kind)


def _copy_of(failure: BaseException) -> BaseException:
    """An exception of its own for each who waits: they add to it, and it gathers a traceback."""
    copy = type(failure).__new__(type(failure), *failure.args)
    copy.__dict__.update(failure.__dict__)
    return copy
