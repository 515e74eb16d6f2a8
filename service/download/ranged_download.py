"""One file on its way into a partial file: parts in parallel, resumed, bounded in size, tries and time."""

import asyncio
import random
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self

import httpx

from service.blob import BlobRef
from service.download.connection_failure import describe
from service.download.partial_file import Origin, PartialFile, Span
from service.download.responses import (
    Broken,
    check_reply,
    content_length,
    etag_of,
    good_etag,
    parse_content_range,
)
from service.download.throughput import (
    ConnectionScaling,
    DownloadLimits,
    DownloadProgress,
    OnDownloadProgress,
    ThroughputMonitor,
)
from service.egress.body_stream import body_of
from service.errors import (
    BlobKind,
    BlobTooLarge,
    BlobUnavailable,
    ChecksumMismatch,
    DownloadTimeout,
    SizeMismatch,
    exhaustion_of,
)

Get = Callable[[str, dict[str, str]], AbstractAsyncContextManager[httpx.Response]]
"""(url, headers) -> the reply to one guarded GET, its body not yet read."""

_UNKNOWN_SIZE_STEP = 64 << 20
"""Room on the disk is taken so many bytes at a time while the file's size is unknown."""
_HASH_KEEPS_UP_BYTES = 24 << 20
"""With more than this waiting to be hashed, another connection would only make the checksum lag behind."""
_MAX_BACKOFF_SECONDS = 10.0
_MAX_GATHER_SECONDS = 1.0
"""What a slow server sends is written after this time, though it does not fill a buffer: a crash loses little."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What came, as computed from the bytes."""

    checksum: str
    size: int


class _StartOver(Exception):
    """What comes now does not belong to the bytes that are here."""


@dataclass(slots=True)
class _Part:
    """What one request asks for: from `start`, which moves as bytes are written, up to `end`."""

    start: int
    end: int | None
    """None: as far as it goes."""
    is_done: bool = False


class RangedDownload:
    """One file on its way into one partial file."""

    def __init__(
        self,
        get: Get,
        limits: DownloadLimits,
        blob: BlobRef,
        partial: PartialFile,
        *,
        kind: BlobKind,
        max_bytes: int,
        on_progress: OnDownloadProgress | None,
    ) -> None:
        self._get = get
        self._limits = limits
        self._blob = blob
        self._partial = partial
        self._kind: BlobKind = kind
        self._max_bytes = max_bytes
        self._on_progress = on_progress
        self._pace = ThroughputMonitor(self._limits, kind)
        self._ranges = True
        """False once the server has shown that it does not honour them."""
        self._total = blob.size
        self._etag: str | None = None
        self._todo: list[Span | _Part] = []
        self._num_parts = 0
        self._failures = 0
        self._failure: Exception | None = None
        """The last failure since bytes came; one that was this machine's own stays."""
        self._received_at_failure = 0

    async def run(self) -> Downloaded:
        """Fetch, start over where that is needed, verify."""
        self._check_size(self._blob.size)
        await self._take_up()
        for _ in range(self._limits.max_attempts):
            try:
                total = await self._fetch_all()
            except _StartOver:
                await self._forget()
                continue
            checksum = await self._partial.checksum(total)
            if self._blob.checksum in (None, checksum):
                return Downloaded(checksum, total)
            if not self._partial.was_resumed:
                raise ChecksumMismatch("the bytes are not those that were promised", blob=self._kind)
            await self._forget()  # the earlier bytes may be the wrong ones: judge these alone
        raise BlobUnavailable("the file changes while it is downloaded", blob=self._kind)

    async def _take_up(self) -> None:
        """Go on from what an earlier attempt left, if it can be part of this blob."""
        origin = self._partial.origin
        if origin is None:
            return
        if origin.total is None or self._blob.size not in (None, origin.total):
            await self._forget()
            return
        self._check_size(origin.total)
        self._total = origin.total
        self._etag = good_etag(origin.etag)

    async def _forget(self) -> None:
        await self._partial.reset()
        self._total, self._etag = self._blob.size, None

    # -- the parts -------------------------------------------------------------------------------------

    async def _fetch_all(self) -> int:
        """Fetch what is missing in one or several parts at once; the size of the whole."""
        if self._total is None:
            self._todo = [_Part(0, self._limits.part_bytes)]
        else:
            await self._reserve(self._total)
            self._todo = list(self._partial.missing(self._total))
            if self._total == 0:  # even so the server must say that there is such a file
                self._todo = [_Part(0, 0)]
        self._pace.begin_stretch()
        ramp = ConnectionScaling(self._limits)
        parts = {asyncio.create_task(self._fetch_parts(ramp))}
        self._num_parts = 1
        try:
            while parts:
                done, parts = await asyncio.wait(
                    parts, timeout=self._limits.tick_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                _raise_first(done)
                self._check_pace()
                self._report()
                if self._another_part_helps(ramp):
                    self._num_parts += 1
                    parts.add(asyncio.create_task(self._fetch_parts(ramp)))
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        return self._partial.frontier

    def _another_part_helps(self, ramp: ConnectionScaling) -> bool:
        return (
            self._ranges
            and self._total is not None
            and bool(self._todo)
            and self._partial.num_unhashed < _HASH_KEEPS_UP_BYTES
            and ramp.wants_another(self._num_parts, self._pace.received)
        )

    def _report(self) -> None:
        if self._on_progress is not None:
            pace = self._pace
            progress = DownloadProgress(
                self._partial.num_done, self._total, pace.bytes_per_second, pace.asked_seconds
            )
            self._on_progress(progress)

    async def _fetch_parts(self, ramp: ConnectionScaling) -> None:
        """One connection: takes part after part until none is left."""
        while (part := self._next_part()) is not None:
            while not part.is_done:
                try:
                    await self._fetch_part(part)
                except (httpx.TransportError, Broken) as failure:
                    if self._num_parts > 1:  # the others go on, and take over what is left of this part
                        self._num_parts -= 1
                        ramp.most = self._num_parts
                        self._todo.insert(0, part)
                        return
                    if part.end and part.start >= part.end:  # all of it came before the connection broke
                        part.is_done = True
                        break
                    await self._back_off(failure)
                    if part.start > 0 and not self._ranges:
                        raise _StartOver from None
        self._num_parts -= 1

    def _next_part(self) -> _Part | None:
        if not self._todo:
            return None
        part = self._todo.pop(0)
        if isinstance(part, _Part):
            return part
        start, end = part
        size = self._limits.part_bytes if self._ranges else end - start
        if end - start > size:
            self._todo.insert(0, (start + size, end))
        return _Part(start, min(start + size, end))

    async def _back_off(self, failure: Exception) -> None:
        if self._pace.received - self._received_at_failure > self._limits.part_bytes // 8:
            self._failures, self._failure = 0, None
        self._received_at_failure = self._pace.received
        self._failures += 1
        if self._failure is None or exhaustion_of(self._failure) is None:
            self._failure = failure
        if self._failures >= self._limits.max_attempts:
            tries = f"{self._failures} tries" if self._failures > 1 else "one try"
            raise BlobUnavailable(f"{describe(failure)} ({tries})", blob=self._kind) from self._failure
        seconds = self._limits.backoff_seconds * 2 ** (self._failures - 1)
        await asyncio.sleep(min(seconds, _MAX_BACKOFF_SECONDS) * random.uniform(0.5, 1.0))

    def _check_pace(self) -> None:
        try:
            self._pace.check(self._max_bytes if self._total is None else self._total)
        except DownloadTimeout as timeout:
            raise timeout from self._failure

    # -- one request -----------------------------------------------------------------------------------

    async def _fetch_part(self, part: _Part) -> None:
        asked = self._range_headers(part)
        async with self._get(self._blob.url, asked) as response:
            if response.status_code == 416 and asked:
                self._give_up_ranges()
            check_reply(response, self._kind)
            if response.status_code == 206:
                await self._expect_range(response, part, asked=bool(asked))
            else:
                await self._expect_whole(response, part, asked=bool(asked))
            await self._copy(response, part)

    def _range_headers(self, part: _Part) -> dict[str, str]:
        whole = part.start == 0 and part.end == self._total
        if not self._ranges or whole or part.end is None:
            return {}
        headers = {"Range": f"bytes={part.start}-{part.end - 1}"}
        if self._etag is not None and self._etag.startswith('"'):  # a weak one is not allowed there
            headers["If-Range"] = self._etag
        return headers

    async def _expect_range(self, response: httpx.Response, part: _Part, *, asked: bool) -> None:
        found = parse_content_range(response)
        if found is None or not asked or part.end is None:
            self._give_up_ranges()
        first, last, total = found
        total = self._total if total is None else total
        if total is None or first != part.start or not first <= last < min(part.end, total):
            self._give_up_ranges()
        if self._etag is not None and (etag_of(response) or self._etag) != self._etag:
            raise _StartOver
        if self._total is None:
            await self._learn_total(total)
            if part.end < total:
                self._todo.append((part.end, total))
        elif total != self._total:
            self._check_size(total)
            raise _StartOver
        self._note_origin(response)
        part.end = last + 1 if last + 1 == total else part.end
        if last + 1 < part.end:
            self._todo.insert(0, (last + 1, part.end))
            part.end = last + 1

    def _give_up_ranges(self) -> NoReturn:
        if not self._ranges:
            raise Broken("the server sent other bytes than it was asked for")
        self._ranges = False
        raise _StartOver

    async def _expect_whole(self, response: httpx.Response, part: _Part, *, asked: bool) -> None:
        if self._partial.done or part.start > 0 or self._num_parts > 1:
            self._ranges = self._ranges and (etag_of(response) or self._etag) != self._etag
            raise _StartOver
        if asked or response.headers.get("accept-ranges") == "none":
            self._ranges = False
        length = content_length(response)
        self._todo = []
        if length is not None:
            await self._learn_total(length)
        part.end = self._total
        self._note_origin(response)

    async def _learn_total(self, total: int) -> None:
        self._check_size(total)
        await self._reserve(total)
        self._total = total

    async def _reserve(self, num_bytes: int) -> None:
        with self._pace.own_work():
            await self._partial.reserve(num_bytes)

    def _note_origin(self, response: httpx.Response) -> None:
        if self._etag is None:
            self._etag = etag_of(response)
        if self._partial.origin is None:
            self._partial.origin = Origin(self._total, self._etag)

    async def _copy(self, response: httpx.Response, part: _Part) -> None:
        """Write a body to its place, counting. What came before a connection broke is written too."""
        at = part.start
        most = self._max_bytes if part.end is None else part.end
        async with _Writer(self._partial, part, self._pace) as writer, body_of(response) as body:
            while num_bytes := await body.read_into(writer.space):
                at += num_bytes
                self._pace.received += num_bytes
                if at > most:
                    self._refuse_more(response, part)
                if part.end is None:
                    await self._reserve(min(most, at + _UNKNOWN_SIZE_STEP))
                await writer.add(num_bytes)
        if part.end is None:
            self._total = part.end = at
        elif at < part.end:
            self._refuse_fewer(response)
        part.is_done = True

    def _refuse_more(self, response: httpx.Response, part: _Part) -> None:
        if response.status_code == 206:
            self._give_up_ranges()
        if part.end is None:
            raise BlobTooLarge(f"the file has more than {self._max_bytes} bytes", blob=self._kind)
        raise SizeMismatch("the file is longer than was promised", blob=self._kind)

    def _refuse_fewer(self, response: httpx.Response) -> None:
        """A body that says itself that it has ended is short; any other may have been cut off."""
        if response.status_code == 200 and "transfer-encoding" in response.headers:
            raise SizeMismatch("the file is shorter than was promised", blob=self._kind)
        raise Broken("the server closed the connection before the whole file had come")

    def _check_size(self, size: int | None) -> None:
        if size is not None and size > self._max_bytes:
            raise BlobTooLarge(f"the file has more than {self._max_bytes} bytes", blob=self._kind)
        if size is not None and self._blob.size not in (None, size):
            raise SizeMismatch(f"the file has {size} bytes, not the number promised", blob=self._kind)


class _Writer:
    """Gathers what comes into larger writes, and goes on receiving while the last one is written."""

    def __init__(self, partial: PartialFile, part: _Part, pace: ThroughputMonitor) -> None:
        self._partial = partial
        self._part = part
        self._pace = pace
        self._buffer = partial.buffers.take()
        self._gathered = 0
        self._since = time.monotonic()
        self._writing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, httpx.TransportError):
            await self._start_write()
            await self._end_write()
        elif self._writing is not None:  # the bytes are of no use, and must not be counted later
            self._writing.cancel()
            await asyncio.wait([self._writing])
        self._partial.buffers.give(self._buffer)

    @property
    def space(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return self._buffer[self._gathered :]

    async def add(self, num_bytes: int) -> None:
        """Take what has been put into `space`, and write when there is enough."""
        self._gathered += num_bytes
        is_full = self._gathered == len(self._buffer)
        if is_full or time.monotonic() - self._since > _MAX_GATHER_SECONDS:
            await self._start_write()

    async def _start_write(self) -> None:
        await self._end_write()
        if self._gathered:
            self._writing = asyncio.create_task(self._write(self._buffer, self._gathered))
            self._buffer = self._partial.buffers.take()
        self._gathered, self._since = 0, time.monotonic()

    async def _end_write(self) -> None:
        if self._writing is not None:
            with self._pace.own_work():
                await self._writing
            self._writing = None

    async def _write(self, buffer: memoryview, size: int) -> None:
        await self._partial.write(self._part.start, size, buffer)
        self._part.start += size


def _raise_first(tasks: set[asyncio.Task[None]]) -> None:
    failures = [error for task in tasks if (error := task.exception()) is not None]
    if failures:
        raise failures[0]
