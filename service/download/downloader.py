"""From a URL to a file whose bytes are counted, hashed and complete, whatever the server does.

    Downloader            guarded connections, redirects, whose fault a failure is
    └── RangedDownload    one file: parts in parallel, resumed, bounded in size, attempts and time
        ├── RangePlan     which bytes are requested next, and what a reply means for the rest
        └── PartialFile   the bytes on disk, their checksum, the note for another attempt

Nothing that the server says is trusted: bytes are counted, ranges are compared with what was requested, the time is
bounded (see throughput), and the checksum of the whole file decides.
"""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Iterator

import httpx

from service.config import Settings
from service.download.connection_failure import describe, may_be_our_network
from service.download.counts import DownloadCounts
from service.download.partial_file import PartialFile
from service.download.ranged_download import Downloaded, RangedDownload
from service.download.request import DownloadRequest
from service.download.responses import Broken, check_reply
from service.download.throughput import DownloadLimits, OnDownloadProgress
from service.egress.address_guard import GuardedTransport
from service.egress.asyncio_network import AsyncioNetwork
from service.egress.body_stream import body_of
from service.egress.resolver import NOT_ONLINE, Resolver, SystemResolver
from service.egress.url_policy import DEFAULT_PORTS, BadUrl, ForbiddenTarget, ParsedUrl, UrlPolicy
from service.errors import (
    BlobKind,
    BlobUnavailable,
    DownloadTimeout,
    ForbiddenUrl,
    InvalidUrl,
    OutOfResources,
    ScoringError,
    ServiceTrouble,
    exhaustion_of,
)

_HEADERS = {"User-Agent": "soma-eval", "Accept": "*/*", "Accept-Encoding": "identity"}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class Downloader:
    """Downloads through the address guard. One for the service; close it at the end.

    `ssl_context`, `resolver` and `network` are for tests and closed networks; by default the certificate
    authorities of the certifi package and the system's resolver.
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
        self.counts = DownloadCounts()
        self._resolver = SystemResolver() if resolver is None else resolver
        context = ssl_context or httpx.create_ssl_context(trust_env=False)
        self._transport = GuardedTransport(self.policy, self._resolver, context, network)

    @classmethod
    def from_settings(cls, settings: Settings) -> "Downloader":
        """The downloader that the settings describe."""
        return cls(
            UrlPolicy(settings.allow_http, settings.allow_private_addresses),
            DownloadLimits(
                base_timeout_seconds=settings.download_base_timeout_seconds,
                min_bytes_per_second=settings.min_download_rate,
                max_attempts=settings.max_download_attempts,
            ),
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()
        if isinstance(self._resolver, SystemResolver):
            self._resolver.close()

    def check_url(self, url: str, kind: BlobKind) -> None:
        """Accept a URL by its form alone. Raises InvalidUrl, ForbiddenUrl."""
        with _refusals_of(kind):
            self.policy.parse(url)

    async def download(
        self,
        request: DownloadRequest,
        partial: PartialFile,
        on_progress: OnDownloadProgress | None = None,
    ) -> Downloaded:
        """Fill an open partial file with the blob, and verify size and checksum where they are promised.

        Raises InvalidUrl, ForbiddenUrl, BlobTooLarge, SizeMismatch, ChecksumMismatch, BlobUnavailable,
        DownloadTimeout, InsufficientStorage, OutOfResources and OSError where the disk does not work.
        """
        try:
            return await self._download(request, partial, on_progress)
        except (ScoringError, OSError) as error:
            self.counts.failed(error)
            raise

    async def _download(
        self, request: DownloadRequest, partial: PartialFile, on_progress: OnDownloadProgress | None
    ) -> Downloaded:
        download = RangedDownload(self.get, self.limits, self.counts, request, partial, on_progress)
        try:
            with _refusals_of(request.kind):
                return await download.run()
        except (BlobUnavailable, DownloadTimeout) as error:
            await self._raise_own_failure(error.__cause__)
            raise

    async def read_head(self, url: str, kind: BlobKind, num_bytes: int) -> tuple[bytes, int | None]:
        """The first bytes of a file (fewer if it is shorter) and its size, where the server states it.

        Raises InvalidUrl, ForbiddenUrl, BlobUnavailable, DownloadTimeout and OutOfResources.
        """
        try:
            with _refusals_of(kind):
                async with asyncio.timeout(self.limits.base_timeout_seconds):
                    return await self._read_head(url, kind, num_bytes)
        except (TimeoutError, httpx.TimeoutException) as error:
            await self._raise_own_failure(error)
            raise DownloadTimeout("the server took too long to answer", blob=kind) from None
        except (httpx.TransportError, Broken) as error:
            await self._raise_own_failure(error)
            raise BlobUnavailable(describe(error), blob=kind) from None

    async def _raise_own_failure(self, failure: BaseException | None) -> None:
        """Raise the ServiceTrouble that made a connection fail, if this machine is the reason.

        A host that does not answer is its publisher's failure as long as this machine's resolver answers at all;
        otherwise nothing can be reached from here, and no publisher is at fault.
        """
        if failure is None:
            return
        trouble: ServiceTrouble | None = exhaustion_of(failure)
        if trouble is None and may_be_our_network(failure) and not await self.is_online():
            trouble = OutOfResources(NOT_ONLINE)
        if trouble is not None:
            raise trouble from failure

    async def is_online(self) -> bool:
        """Whether this machine's resolver answers at all; True where another resolver is in use."""
        return not isinstance(self._resolver, SystemResolver) or await self._resolver.is_answering()

    async def _read_head(self, url: str, kind: BlobKind, num_bytes: int) -> tuple[bytes, int | None]:
        async with self.get(url, {"Range": f"bytes=0-{num_bytes - 1}"}) as response:
            head = check_reply(response, kind)
            size = head.length
            if head.is_partial:
                if head.content_range is None or head.content_range.first != 0:
                    raise Broken("the server sent other bytes than were requested")
                size = head.content_range.size
            buffer, num_read = bytearray(num_bytes), 0
            async with body_of(response) as body:
                while num_read < num_bytes:
                    num_new = await body.read_into(memoryview(buffer)[num_read:])
                    if num_new == 0:
                        break
                    num_read += num_new
            return bytes(buffer[:num_read]), size

    @contextlib.asynccontextmanager
    async def get(self, url: str, headers: dict[str, str]) -> AsyncIterator[httpx.Response]:
        """The reply to one GET, its body not yet read, after at most `max_redirects` redirects.

        Raises BadUrl, ForbiddenTarget, Broken and httpx.TransportError.
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
        raise Broken(f"the server redirects more than {self.limits.max_redirects} times")

    async def _send(self, url: str, target: ParsedUrl, headers: dict[str, str]) -> httpx.Response:
        idle = self.limits.idle_seconds
        timeouts = {"connect": idle, "read": idle, "write": idle, "pool": idle}
        try:
            request = httpx.Request("GET", url, headers=_HEADERS | headers, extensions={"timeout": timeouts})
        except (httpx.InvalidURL, UnicodeError):  # the latter for a name that is not valid Punycode
            raise BadUrl("the URL is malformed") from None
        if _as_dialled(request.url) != target:
            raise BadUrl("the URL can be read in two ways")
        return await self._transport.handle_async_request(request)


def _as_dialled(url: httpx.URL) -> ParsedUrl:
    """What httpx reads in a URL, as it will be dialled: a name in Punycode stays as it is."""
    port = DEFAULT_PORTS.get(url.scheme, 0) if url.port is None else url.port
    return ParsedUrl(url.scheme, url.raw_host.decode("ascii"), port)


def _join(url: str, location: str) -> str:
    try:
        return str(httpx.URL(url).join(location))
    except (httpx.InvalidURL, ValueError):
        raise BadUrl("a redirect leads to a malformed URL") from None


@contextlib.contextmanager
def _refusals_of(kind: BlobKind) -> Iterator[None]:
    """Turn a refusal of the guard into an error that names whose URL it was, and not where it leads."""
    try:
        yield
    except BadUrl as refusal:
        raise InvalidUrl(str(refusal), blob=kind) from None
    except ForbiddenTarget as refusal:
        raise ForbiddenUrl(str(refusal), blob=kind) from None
