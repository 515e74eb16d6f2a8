"""The cache of published files, each named by its verified checksum. Nothing decrypted is ever stored here.

    BlobCache              fetch: from disk where its URL has delivered the file before, else downloaded
    ├── SharedDownloads    requests for the same file share one download
    ├── Downloader         URL -> verified file
    └── BlobStore          the files on disk, what they take, what is evicted

Files that are in use are pinned; the least recently used of the others are evicted when space is needed.
"""

import contextlib
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from service.blob import BlobRef
from service.cache.blob_store import BlobStore
from service.cache.folder import CacheInUse, ForeignFolder
from service.cache.index import Entry
from service.cache.shared_download import SharedDownload, SharedDownloads
from service.checksum import checksum_of, is_checksum
from service.download.counts import DownloadCounts
from service.download.downloader import Downloader
from service.download.request import DownloadRequest
from service.download.throughput import DownloadLimits, DownloadProgress, OnDownloadProgress
from service.errors import BlobError, BlobKind, ChecksumMismatch, Draining, ScoringError

__all__ = ["BlobCache", "CacheInUse", "CachedBlob", "Download", "ForeignFolder"]


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """A verified file, which exists as long as the with-block it came from."""

    path: Path
    checksum: str
    """Blake2b-256 in Base58, computed from the bytes."""
    size: int
    """Bytes."""
    was_cached: bool
    """True if nothing had to be downloaded or written for it."""
    download_seconds: float
    """Until it was here, including the wait for another request's download of it."""


@dataclass(frozen=True, slots=True)
class Download:
    """A download that runs. What its URL is, is its publisher's secret."""

    kind: BlobKind
    progress: DownloadProgress | None
    """None until the server responds."""


@dataclass(frozen=True, slots=True)
class CacheCounts:
    """What a cache has done since it was made, in numbers that only rise."""

    hits: int
    """Files that were here when they were asked for."""
    misses: int
    """Files that had to be downloaded, or were being downloaded for somebody else."""
    evictions: int
    """Files that were deleted to make room."""


class BlobCache:
    """Content-addressed files under one directory. `start` before use, `close` after; one event loop.

    `max_bytes` bounds what all files take, unfinished ones included. After a write has failed, the disk is probed
    every `retry_seconds` until it works again.
    """

    def __init__(
        self, directory: Path, downloader: Downloader, *, max_bytes: int, retry_seconds: float = 5.0
    ) -> None:
        self._downloader = downloader
        self._store = BlobStore(directory, max_bytes=max_bytes, retry_seconds=retry_seconds)
        self._downloads = SharedDownloads(self._store.index)
        self._closing = False
        self._num_hits = self._num_misses = 0

    async def start(self) -> None:
        """Make the folders, take the lock, and delete what a crash has left, unless it can be resumed.

        Raises CacheInUse if another service has the lock, ForeignFolder if the directory contains other files,
        OSError if it cannot be used.
        """
        await self._store.start()

    async def close(self) -> None:
        """Cancel every download, wait for the last thread, release the lock."""
        self._closing = True
        await self._downloads.close()
        await self._store.close()

    # -- files -----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def fetch(
        self,
        blob: BlobRef,
        *,
        kind: BlobKind,
        max_bytes: int,
        on_progress: OnDownloadProgress | None = None,
        is_counted: bool = True,
    ) -> AsyncIterator[CachedBlob]:
        """The blob's file, from the cache or downloaded; it exists while inside the with-block.

        A file is taken from the cache only for a URL that has delivered these very bytes before. Any other URL
        must deliver them first: a result must not depend on what the cache happens to contain.
        `on_progress` is called on the event loop. `is_counted`: whether this is a hit or a miss, and not the same
        request that comes back for its file. Raises what Downloader.download raises, Draining, and
        OutOfResources where the disk does not work.
        """
        request = DownloadRequest(blob, kind, max_bytes)
        self._check(request)
        began = time.monotonic()
        try:
            entry, was_cached = await self._obtain(request, on_progress)
        except ScoringError:
            self._num_misses += is_counted
            raise
        self._num_hits += is_counted and was_cached
        self._num_misses += is_counted and not was_cached
        try:
            request.check_size(entry.size)
            seconds = 0.0 if was_cached else time.monotonic() - began
            yield CachedBlob(entry.path, entry.name, entry.size, was_cached, seconds)
        finally:
            self._store.index.unpin(entry)

    @contextlib.asynccontextmanager
    async def hold(self, data: bytes) -> AsyncIterator[CachedBlob]:
        """A file with these bytes, which exists while inside the with-block.

        Raises Draining, InsufficientStorage, OutOfResources.
        """
        self._check_open()
        began = time.monotonic()
        checksum = await self._store.checksum_of(data)
        async with self._store.temporary_file(data) as path:
            yield CachedBlob(path, checksum, len(data), False, time.monotonic() - began)

    def size_of(self, blob: BlobRef) -> int | None:
        """Bytes of a blob for which `fetch` needs no download; None for any other."""
        entry = self._store.delivered(blob)
        return None if entry is None else entry.size

    def _check(self, request: DownloadRequest) -> None:
        """Refuse what can be refused without the network, whether the blob is here or not."""
        blob, kind = request.blob, request.kind
        self._downloader.check_url(blob.url, kind)
        if blob.checksum is not None and not is_checksum(blob.checksum):
            raise ChecksumMismatch("what was promised is not 32 bytes in Base58", blob=kind)
        request.check_size(blob.size)
        self._check_open()

    def _check_open(self) -> None:
        if self._closing:
            raise Draining("the service is stopping")

    # -- from the cache, or downloaded -----------------------------------------------------------------

    async def _obtain(
        self, request: DownloadRequest, on_progress: OnDownloadProgress | None
    ) -> tuple[Entry, bool]:
        """A pinned entry, and whether it was in the cache."""
        name = download_name(request.blob)
        while True:
            if (entry := await self._find_delivered(request)) is not None:
                return entry, True
            download = self._downloads.get(name)
            if download is None:
                self._check_open()
                download = self._downloads.start(name, request, lambda started: self._download(name, started))
            if download.is_cancelled:
                await download.wait_for_end()
            elif download.request == request:
                return await download.wait(on_progress), False
            else:  # it may fail for a reason that does not apply here, such as another promised size
                with contextlib.suppress(BlobError):
                    return await download.wait(on_progress), False

    async def _find_delivered(self, request: DownloadRequest) -> Entry | None:
        """A pinned entry, if its URL has delivered these bytes before."""
        delivered = self._store.delivered(request.blob)
        return None if delivered is None else await self._store.find(delivered.name)

    async def _download(self, name: str, download: SharedDownload) -> Entry:
        """Download, verify, publish: an entry with one pin."""
        request = download.request
        async with self._store.partial_file(
            name, self._downloader.limits, is_resumable=request.blob.checksum is not None
        ) as partial:
            found = await self._downloader.download(request, partial, download.report)
            download.is_publishing = True
            return await self._store.publish(request.blob, partial, found.checksum, found.size)

    # -- state -----------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str | None:
        """What is wrong with the disk, for people; None while it can be written to."""
        return self._store.health.trouble

    @property
    def bytes_used(self) -> int:
        """What all files take, unfinished downloads included."""
        return self._store.budget.bytes_used

    def downloads(self) -> list[Download]:
        """Those that run now, the first to be started first."""
        return [Download(running.request.kind, running.latest) for running in self._downloads.running()]

    @property
    def max_bytes(self) -> int:
        """What they may take."""
        return self._store.budget.max_bytes

    @property
    def counts(self) -> CacheCounts:
        """Since this cache was made."""
        return CacheCounts(self._num_hits, self._num_misses, self._store.budget.num_evictions)

    @property
    def download_counts(self) -> DownloadCounts:
        """Since the downloader was made."""
        return self._downloader.counts

    async def capacity_bytes(self) -> int:
        """What the cache can store when nothing is in use: its limit, or less on a small disk."""
        budget = self._store.budget
        return min(budget.max_bytes, budget.bytes_used + await budget.free_disk_bytes())

    @property
    def download_limits(self) -> DownloadLimits:
        """The limits of every download."""
        return self._downloader.limits

    async def is_online(self) -> bool:
        """Whether anything at all can be downloaded from here: see Downloader."""
        return await self._downloader.is_online()


def download_name(blob: BlobRef) -> str:
    """One for each URL and promised checksum, so that another attempt finds what an earlier one left."""
    if blob.checksum is None:
        return secrets.token_hex(8)
    return checksum_of(f"{blob.checksum} {blob.url}".encode())
