"""Blobs on disk, as published, each named by its verified checksum. Nothing decrypted ever lies here.

What is in use is pinned and stays; the rest is evicted, oldest use first, when room is needed.
"""

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from service.cache_folder import (
    CacheInUse,
    Entry,
    delete,
    lock,
    note_url,
    sweep,
    touch,
    urls_file,
    write_blob,
)
from service.checksum import checksum_of, is_checksum
from service.competition import BlobRef
from service.download import Downloader
from service.errors import (
    BlobError,
    BlobKind,
    BlobTooLarge,
    BlobUnavailable,
    ChecksumMismatch,
    DownloadTimeout,
    Draining,
    InsufficientStorage,
    SizeMismatch,
)
from service.file_threads import FileThreads
from service.pace import DownloadLimits, DownloadProgress, OnDownloadProgress
from service.partial_file import OUT_OF_SPACE, PartialFile

__all__ = ["BlobCache", "CacheInUse", "CachedBlob"]

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

    `max_bytes` bounds what lies there, unfinished downloads included.
    """

    def __init__(self, directory: Path, downloader: Downloader, *, max_bytes: int) -> None:
        self._directory = directory
        self._blobs = directory / "blobs"
        self._partials = directory / "partial"
        self._urls = directory / "urls"
        self._downloader = downloader
        self._max_bytes = max_bytes
        self._entries: dict[str, Entry] = {}
        self._leftovers: dict[str, Entry] = {}
        self._flights: dict[str, _Flight] = {}
        self._claims: dict[Path, int] = {}
        self._threads = FileThreads()
        self._lock_fd = -1
        self._closing = False

    # -- life ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Make the folders, take the lock, delete what a crash left behind except what can be gone on with.

        Raises CacheInUse if another service has the lock, OSError if the directory cannot be used.
        """
        await self._run(self._take_lock)
        self._entries, self._leftovers = await self._run(sweep, self._blobs, self._partials, self._urls)
        with contextlib.suppress(InsufficientStorage):
            await self._make_room(0)

    async def close(self) -> None:
        """End every download, wait for the last thread, give the lock back."""
        self._closing = True
        flights = list(self._flights.values())
        for flight in flights:
            flight.abandon()
        await asyncio.gather(*(flight.task for flight in flights), return_exceptions=True)
        self._threads.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def _take_lock(self) -> None:
        """In a thread, which notes the descriptor by itself: a cancelled start hears of nothing."""
        self._lock_fd = lock(self._directory)

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
        `on_progress` is called on the event loop. Raises what Downloader.download raises.
        """
        self._check(blob, kind, max_bytes)
        self._check_open()
        began = time.monotonic()
        terms = _Terms(blob, kind, max_bytes)
        entry, was_cached = await self._obtain(terms, on_progress)
        try:
            _check_entry(entry, terms)
            seconds = 0.0 if was_cached else time.monotonic() - began
            yield CachedBlob(entry.path, entry.path.name, entry.size, was_cached, seconds)
        finally:
            self._unpin(entry)

    @contextlib.asynccontextmanager
    async def put(self, data: bytes) -> AsyncIterator[CachedBlob]:
        """A file with these bytes, the same way; raises InsufficientStorage."""
        self._check_open()
        began = time.monotonic()
        checksum = await self._checksum_of(data)
        entry = await self._find(checksum)
        was_cached = entry is not None
        if entry is None:
            entry = await self._write(checksum, data)
        try:
            yield CachedBlob(
                entry.path, checksum, entry.size, was_cached, 0.0 if was_cached else time.monotonic() - began
            )
        finally:
            self._unpin(entry)

    @property
    def download_limits(self) -> DownloadLimits:
        """What a download is held to."""
        return self._downloader.limits

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
        return None if entry is None else await self._find(entry.path.name)

    def _delivered(self, blob: BlobRef) -> Entry | None:
        entry = self._entries.get(blob.checksum or "")
        if entry is None or checksum_of(blob.url.encode()) not in entry.urls:
            return None
        return entry

    async def _find(self, checksum: str) -> Entry | None:
        """The entry, pinned, if it is here and its file still is what it was."""
        entry = self._entries.get(checksum)
        if entry is None:
            return None
        entry.num_pins += 1
        try:
            intact = await self._run(touch, entry.path, entry.size)
        except BaseException:
            self._unpin(entry)
            raise
        entry.last_used = time.time()
        if intact:
            return entry
        self._unpin(entry)
        if self._entries.get(checksum) is entry:
            del self._entries[checksum]
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
            self._unpin(flight.task.result())

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
            entry.num_pins += 1
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
        leftover = self._leftovers.pop(path.stem, None)
        self._claims[path] = leftover.size if leftover is not None else 0
        limits = self._downloader.limits
        partial = PartialFile(
            path,
            _Room(self, path),
            self._threads,
            is_resumable=is_resumable,
            checkpoint_bytes=limits.checkpoint_bytes,
            write_bytes=limits.write_bytes,
        )
        keep = False
        try:
            return await self._fill_and_publish(flight, partial)
        except (BlobUnavailable, DownloadTimeout, asyncio.CancelledError):
            keep = is_resumable
            raise
        finally:
            try:
                await partial.close(keep=keep)
            finally:
                del self._claims[path]
                if keep:
                    self._remember_leftover(path)

    async def _fill_and_publish(self, flight: _Flight, partial: PartialFile) -> Entry:
        terms = flight.terms
        await partial.open()
        found = await self._downloader.download(
            terms.blob, partial, kind=terms.kind, max_bytes=terms.max_bytes, on_progress=flight.tell
        )
        flight.is_publishing = True
        entry = await self._find(found.checksum)  # the same bytes came from elsewhere: one file is enough
        if entry is None:
            destination = self._blobs / found.checksum
            await partial.publish(destination, found.size)
            self._claims[partial.path] = 0
            entry = self._admit(destination, found.size)
        try:
            await self._run(note_url, self._urls, entry, checksum_of(terms.blob.url.encode()))
        except BaseException:
            self._unpin(entry)
            raise
        return entry

    def _remember_leftover(self, path: Path) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._leftovers[path.stem] = Entry(path, path.stat().st_size, time.time())

    def _admit(self, path: Path, size: int) -> Entry:
        entry = self._entries.setdefault(path.name, Entry(path, size, time.time()))
        entry.num_pins += 1
        return entry

    async def _write(self, checksum: str, data: bytes) -> Entry:
        path = self._partials / f"{secrets.token_hex(8)}.part"
        destination = self._blobs / checksum
        self._claims[path] = 0
        try:
            room = _Room(self, path)
            await room.claim(len(data))
            while True:
                try:
                    await self._run(write_blob, path, destination, data)
                except asyncio.CancelledError:
                    if destination.exists():  # nobody wants it now, but there it lies
                        self._unpin(self._admit(destination, len(data)))
                    raise
                except OSError as error:
                    if error.errno not in OUT_OF_SPACE:
                        raise
                    if not await room.free_some():
                        raise InsufficientStorage("the disk has no room for the data") from error
                else:
                    return self._admit(destination, len(data))
        finally:
            del self._claims[path]

    # -- room ------------------------------------------------------------------------------------------

    @property
    def bytes_used(self) -> int:
        """What lies in the directory or is promised to a download."""
        entries = (*self._entries.values(), *self._leftovers.values())
        return sum(entry.size for entry in entries) + sum(self._claims.values())

    async def room_bytes(self) -> int:
        """What the cache can hold when nothing is in use: its limit, or less on a small disk."""
        disk = await self._run(os.statvfs, self._partials)
        return min(self._max_bytes, self.bytes_used + disk.f_bavail * disk.f_frsize)

    async def claim(self, path: Path, num_bytes: int) -> None:
        """Expected `num_bytes` in all to a file on its way in. Raises InsufficientStorage."""
        more = num_bytes - self._claims[path]
        if more <= 0:
            return
        disk = await self._run(os.statvfs, self._partials)
        if more > disk.f_bavail * disk.f_frsize + self._idle_bytes:
            raise InsufficientStorage("the disk has no room for the file")
        await self._make_room(more)
        self._claims[path] = num_bytes

    @property
    def _idle_bytes(self) -> int:
        """What could be evicted."""
        entries = (*self._entries.values(), *self._leftovers.values())
        return sum(entry.size for entry in entries if entry.num_pins == 0)

    async def _make_room(self, num_bytes: int) -> None:
        if self.bytes_used - self._idle_bytes + num_bytes > self._max_bytes:  # nothing is evicted in vain
            raise InsufficientStorage("the cache is full of files that are in use")
        while self.bytes_used + num_bytes > self._max_bytes:
            if not await self.evict_one():
                raise InsufficientStorage("the cache is full of files that are in use")

    async def evict_one(self) -> bool:
        """Delete the file that has not been used for the longest time; False if all are in use."""
        idle = [
            (entry.last_used, name, shelf)
            for shelf in (self._entries, self._leftovers)
            for name, entry in shelf.items()
            if entry.num_pins == 0
        ]
        if not idle:
            return False
        _, name, shelf = min(idle, key=lambda candidate: candidate[0])
        entry = shelf.pop(name)
        doomed = self._partials / f"{secrets.token_hex(8)}.evicted"
        with contextlib.suppress(FileNotFoundError):
            entry.path.rename(doomed)  # at once, so that the name is free; deleting gigabytes takes a while
        note = urls_file(self._urls, name) if shelf is self._entries else entry.path.with_suffix(".json")
        await self._run(delete, doomed, note)
        return True

    def _unpin(self, entry: Entry) -> None:
        entry.num_pins -= 1

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


class _Room:
    """The room that one file takes or is promised."""

    def __init__(self, cache: BlobCache, path: Path) -> None:
        self._cache = cache
        self._path = path

    async def claim(self, num_bytes: int) -> None:
        await self._cache.claim(self._path, num_bytes)

    async def free_some(self) -> bool:
        return await self._cache.evict_one()


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
