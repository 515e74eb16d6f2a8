"""From a URL to a file whose bytes are counted, hashed and complete, whatever the server does.

    Downloader            guarded connections, redirects, one request at a time
    └── _Download         one file: parts in parallel, resumed, bounded in size, tries and time

Nothing the server says is trusted: bytes are counted, ranges are compared with what was asked for, the time is
bounded (see pace), and the checksum over the whole is the last judge.
"""

import asyncio
import contextlib
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self

import httpx

from service.address_guard import GuardedTransport, Resolver, SystemResolver
from service.asyncio_network import AsyncioNetwork
from service.body_stream import body_of
from service.checksum import checksum_of
from service.competition import BlobRef
from service.config import Settings
from service.errors import (
    BlobKind,
    BlobTooLarge,
    BlobUnavailable,
    ChecksumMismatch,
    DownloadTimeout,
    ForbiddenUrl,
    InvalidUrl,
    SizeMismatch,
)
from service.pace import DownloadLimits, DownloadProgress, OnDownloadProgress, Pace, Ramp
from service.partial_file import Origin, PartialFile, Span
from service.url_policy import BadUrl, ForbiddenTarget, ParsedUrl, UrlPolicy

_HEADERS = {"User-Agent": "soma-eval", "Accept": "*/*", "Accept-Encoding": "identity"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)
_UNKNOWN_SIZE_STEP = 64 << 20
_HASH_KEEPS_UP_BYTES = 24 << 20
_MAX_BACKOFF_SECONDS = 10.0
_MAX_ETAG_LENGTH = 256
_MAX_GATHER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Downloaded:
    """What came, as computed from the bytes."""

    checksum: str
    size: int


__all__ = ["DownloadLimits", "DownloadProgress", "Downloaded", "Downloader", "OnDownloadProgress"]


class Downloader:
    """Downloads through the guard. One for the service; close it at the end.

    `ssl_context`, `resolver` and `network` are for tests and closed networks; by default the system's
    resolver and the certificate authorities of the certifi package.
    """

    def __init__(
        self,
        policy: UrlPolicy | None = None,
        limits: DownloadLimits | None = None,
        *,
        ssl_context: ssl.SSLContext | None = None,
        resolver: Resolver | None = None,
        network: AsyncioNetwork | None = None,
    ) -> None:
        self.policy = policy or UrlPolicy()
        self.limits = limits or DownloadLimits()
        self._own_resolver: SystemResolver | None = None
        if resolver is None:
            resolver = self._own_resolver = SystemResolver()
        context = ssl_context or httpx.create_ssl_context(trust_env=False)
        self._transport = GuardedTransport(self.policy, resolver, context, network)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Downloader":
        """The downloader that the settings describe."""
        return cls(
            UrlPolicy(settings.allow_http, settings.allow_private_addresses),
            DownloadLimits(
                floor_seconds=settings.download_floor_seconds,
                min_bytes_per_second=settings.min_download_rate,
                max_attempts=settings.max_download_attempts,
            ),
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()
        if self._own_resolver is not None:
            self._own_resolver.close()

    def check_url(self, url: str, kind: BlobKind) -> None:
        """Judge a URL by its form alone. Raises InvalidUrl, ForbiddenUrl."""
        with _refusals_of(kind):
            self.policy.parse(url)

    def server_of(self, url: str) -> str:
        """Scheme, host and port of a URL that `check_url` has passed."""
        parsed = self.policy.parse(url)
        return f"{parsed.scheme}://{parsed.host}:{parsed.port}"

    async def download(
        self,
        blob: BlobRef,
        partial: PartialFile,
        *,
        kind: BlobKind,
        max_bytes: int,
        on_progress: OnDownloadProgress | None = None,
    ) -> Downloaded:
        """Fill an open partial file with the blob and verify size and checksum as far as they are promised.

        Raises InvalidUrl, ForbiddenUrl, BlobTooLarge, SizeMismatch, ChecksumMismatch, BlobUnavailable,
        DownloadTimeout and InsufficientStorage.
        """
        with _refusals_of(kind):
            return await _Download(self, blob, partial, kind, max_bytes, on_progress).run()

    async def read_head(self, url: str, kind: BlobKind, num_bytes: int) -> tuple[bytes, int | None]:
        """The first bytes of a file (fewer if it is shorter) and its size, where the server tells it.

        Raises InvalidUrl, ForbiddenUrl, BlobUnavailable and DownloadTimeout.
        """
        try:
            with _refusals_of(kind):
                async with asyncio.timeout(self.limits.floor_seconds):
                    return await self._read_head(url, kind, num_bytes)
        except (TimeoutError, httpx.TimeoutException):
            raise DownloadTimeout("the server took too long to answer", blob=kind) from None
        except (httpx.TransportError, _Broken):
            raise BlobUnavailable("the connection broke", blob=kind) from None

    async def _read_head(self, url: str, kind: BlobKind, num_bytes: int) -> tuple[bytes, int | None]:
        async with self.get(url, {"Range": f"bytes=0-{num_bytes - 1}"}) as response:
            check_reply(response, kind)
            if response.status_code == 206:
                first, _, total = parse_content_range(response) or (-1, -1, None)
                if first != 0:
                    raise _Broken
            else:
                total = content_length(response)
            head, num_read = bytearray(num_bytes), 0
            async with body_of(response) as body:
                while num_read < num_bytes:
                    some = await body.read_into(memoryview(head)[num_read:])
                    if some == 0:
                        break
                    num_read += some
            return bytes(head[:num_read]), total

    @contextlib.asynccontextmanager
    async def get(self, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """The reply to one GET, its body not yet read, after at most `max_redirects` redirects.

        Raises BadUrl, ForbiddenTarget, and httpx.TransportError.
        """
        target = self.policy.parse(url)
        for _ in range(self.limits.max_redirects + 1):
            response = await self._send(url, target, headers)
            try:
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None:
                    yield response
                    return
            finally:
                await response.aclose()
            url = _join(url, location)
            origin, target = target, self.policy.parse(url)
            self.policy.check_redirect(origin, target)
        raise _Broken

    async def _send(self, url: str, target: ParsedUrl, headers: dict[str, str]) -> httpx.Response:
        idle = self.limits.idle_seconds
        timeouts = {"connect": idle, "read": idle, "write": idle, "pool": idle}
        try:
            request = httpx.Request("GET", url, headers=_HEADERS | headers, extensions={"timeout": timeouts})
        except httpx.InvalidURL:
            raise BadUrl("the URL is malformed") from None
        if (request.url.scheme, request.url.host) != (target.scheme, target.host):
            raise BadUrl("the URL can be read in two ways")
        return await self._transport.handle_async_request(request)


class _Broken(Exception):
    """The reply or the connection was no good; another try may succeed."""


class _StartOver(Exception):
    """What comes now does not belong to the bytes that are here."""


@dataclass(slots=True)
class _Part:
    """What one request asks for: from `start`, which moves as bytes are written, up to `end`."""

    start: int
    end: int | None
    """None: as far as it goes."""
    is_done: bool = False


class _Download:
    """One file on its way into one partial file."""

    def __init__(
        self,
        downloader: Downloader,
        blob: BlobRef,
        partial: PartialFile,
        kind: BlobKind,
        max_bytes: int,
        on_progress: OnDownloadProgress | None,
    ) -> None:
        self._downloader = downloader
        self._limits = downloader.limits
        self._blob = blob
        self._partial = partial
        self._kind: BlobKind = kind
        self._max_bytes = max_bytes
        self._on_progress = on_progress
        self._pace = Pace(self._limits, kind)
        self._ranges = True
        """False once the server has shown that it does not honour them."""
        self._total = blob.size
        self._etag: str | None = None
        self._todo: list[Span | _Part] = []
        self._num_parts = 0
        self._failures = 0
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
        if origin.url_digest == self._url_digest:
            self._etag = origin.etag

    async def _forget(self) -> None:
        await self._partial.reset()
        self._total, self._etag = self._blob.size, None

    @property
    def _url_digest(self) -> str:
        return checksum_of(self._blob.url.encode())

    # -- the parts -------------------------------------------------------------------------------------

    async def _fetch_all(self) -> int:
        """Fetch what is missing in one or several parts at once; the size of the whole."""
        if self._total is None:
            self._todo = [_Part(0, self._limits.part_bytes)]
        else:
            await self._partial.reserve(self._total)
            self._todo = list(self._partial.missing(self._total))
            if self._total == 0:  # even so the server must say that there is such a file
                self._todo = [_Part(0, 0)]
        self._pace.begin_stretch()
        ramp = Ramp(self._limits)
        parts = {asyncio.create_task(self._fetch_parts(ramp))}
        self._num_parts = 1
        try:
            while parts:
                done, parts = await asyncio.wait(
                    parts, timeout=self._limits.tick_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                _raise_first(done)
                self._pace.check(self._max_bytes if self._total is None else self._total)
                self._report()
                if self._another_part_helps(ramp):
                    self._num_parts += 1
                    parts.add(asyncio.create_task(self._fetch_parts(ramp)))
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
        return self._partial.frontier

    def _another_part_helps(self, ramp: Ramp) -> bool:
        return (
            self._ranges
            and self._total is not None
            and bool(self._todo)
            and self._partial.num_unhashed < _HASH_KEEPS_UP_BYTES
            and ramp.wants_another(self._num_parts, self._pace.received)
        )

    def _report(self) -> None:
        if self._on_progress is not None:
            progress = DownloadProgress(self._partial.num_done, self._total, self._pace.bytes_per_second)
            self._on_progress(progress)

    async def _fetch_parts(self, ramp: Ramp) -> None:
        """One connection: takes part after part until none is left."""
        while (part := self._next_part()) is not None:
            while not part.is_done:
                try:
                    await self._fetch_part(part)
                except (httpx.TransportError, _Broken):
                    if self._num_parts > 1:  # the others go on, and take over what is left of this part
                        self._num_parts -= 1
                        ramp.most = self._num_parts
                        self._todo.insert(0, part)
                        return
                    if part.end and part.start >= part.end:  # all of it came before the connection broke
                        part.is_done = True
                        break
                    await self._back_off()
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

    async def _back_off(self) -> None:
        if self._pace.received - self._received_at_failure > self._limits.part_bytes // 8:
            self._failures = 0
        self._received_at_failure = self._pace.received
        self._failures += 1
        if self._failures >= self._limits.max_attempts:
            raise BlobUnavailable("the connection broke again and again", blob=self._kind) from None
        seconds = self._limits.backoff_seconds * 2 ** (self._failures - 1)
        await asyncio.sleep(min(seconds, _MAX_BACKOFF_SECONDS) * random.uniform(0.5, 1.0))

    # -- one request -----------------------------------------------------------------------------------

    async def _fetch_part(self, part: _Part) -> None:
        asked = self._range_headers(part)
        async with self._downloader.get(self._blob.url, asked) as response:
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
        if self._etag is not None and response.headers.get("etag", self._etag) != self._etag:
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
            raise _Broken
        self._ranges = False
        raise _StartOver

    async def _expect_whole(self, response: httpx.Response, part: _Part, *, asked: bool) -> None:
        if self._partial.done or part.start > 0 or self._num_parts > 1:
            self._ranges = self._ranges and response.headers.get("etag", self._etag) != self._etag
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
        await self._partial.reserve(total)
        self._total = total

    def _note_origin(self, response: httpx.Response) -> None:
        if self._etag is None:
            etag = response.headers.get("etag")
            self._etag = etag if etag is not None and len(etag) <= _MAX_ETAG_LENGTH else None
        if self._partial.origin is None:
            self._partial.origin = Origin(self._url_digest, self._total, self._etag)

    async def _copy(self, response: httpx.Response, part: _Part) -> None:
        """Write a body to its place, counting. What came before a connection broke is written too."""
        at = part.start
        most = self._max_bytes if part.end is None else part.end
        async with _Writer(self._partial, part) as writer, body_of(response) as body:
            while num_bytes := await body.read_into(writer.space):
                at += num_bytes
                self._pace.received += num_bytes
                if at > most:
                    self._refuse_more(response, part)
                if part.end is None:
                    await self._partial.reserve(min(most, at + _UNKNOWN_SIZE_STEP))
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
        raise _Broken

    def _check_size(self, size: int | None) -> None:
        if size is not None and size > self._max_bytes:
            raise BlobTooLarge(f"the file has more than {self._max_bytes} bytes", blob=self._kind)
        if size is not None and self._blob.size not in (None, size):
            raise SizeMismatch(f"the file has {size} bytes, not the number promised", blob=self._kind)


class _Writer:
    """Gathers what comes into larger writes, and goes on receiving while the last one is written."""

    def __init__(self, partial: PartialFile, part: _Part) -> None:
        self._partial = partial
        self._part = part
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
            await self._writing
            self._writing = None

    async def _write(self, buffer: memoryview, size: int) -> None:
        await self._partial.write(self._part.start, size, buffer)
        self._part.start += size


def check_reply(response: httpx.Response, kind: BlobKind) -> None:
    """Accept 200 and 206 of bytes as they are. Raises BlobUnavailable; _Broken, _StartOver inside."""
    status = response.status_code
    if status in _WORTH_ANOTHER_TRY:
        raise _Broken
    if status not in (200, 206):
        raise BlobUnavailable(f"the server answered with status {status}", blob=kind)
    if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise BlobUnavailable("the server sent the file in a coding nobody asked for", blob=kind)


def parse_content_range(response: httpx.Response) -> tuple[int, int, int | None] | None:
    """First and last byte and size (None: not told) of a 206; None where it makes no sense."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None or response.headers.get("content-type", "").lower().startswith("multipart/"):
        return None
    first, last, total = match.groups()
    return int(first), int(last), None if total == "*" else int(total)


def content_length(response: httpx.Response) -> int | None:
    """The length that a reply claims for its body, where it claims one."""
    text = response.headers.get("content-length", "")
    if "transfer-encoding" in response.headers or not re.fullmatch("[0-9]{1,18}", text):
        return None
    return int(text)


def _join(url: str, location: str) -> str:
    try:
        return str(httpx.URL(url).join(location))
    except (httpx.InvalidURL, ValueError):
        raise BadUrl("a redirect leads to a malformed URL") from None


def _raise_first(tasks: set[asyncio.Task[None]]) -> None:
    failures = [error for task in tasks if (error := task.exception()) is not None]
    if failures:
        raise failures[0]


@contextlib.contextmanager
def _refusals_of(kind: BlobKind) -> Iterator[None]:
    """Say whose URL it was that the guard refused, and nothing of where it leads."""
    try:
        yield
    except BadUrl as refusal:
        raise InvalidUrl(str(refusal), blob=kind) from None
    except ForbiddenTarget as refusal:
        raise ForbiddenUrl(str(refusal), blob=kind) from None
