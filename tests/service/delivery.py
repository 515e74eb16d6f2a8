"""A cache, a downloader and a misbehaving server in one block; no test dials anything but loopback."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpcore
import pytest

from service.blob import BlobRef
from service.cache.blob_cache import BlobCache, CachedBlob
from service.checksum import checksum_of
from service.download.downloader import Downloader
from service.download.throughput import DownloadLimits, OnDownloadProgress
from service.egress.asyncio_network import AsyncioNetwork, AsyncioStream
from service.egress.resolver import Resolver
from service.egress.url_policy import UrlPolicy
from service.errors import BlobKind, ScoringError
from tests.misbehaving_server import Behaviour, MisbehavingServer, client_context, honest, random_bytes
from tests.workers.processes.pools import until

QUICK = DownloadLimits(
    base_timeout_seconds=0.6,
    min_bytes_per_second=2000.0,
    part_bytes=1 << 16,
    write_bytes=1 << 12,
    backoff_seconds=0.01,
    tick_seconds=0.01,
    sync_bytes=1 << 15,
)
"""Limits for files of some hundred kilobytes."""

LOCAL = UrlPolicy(allow_http=False, allow_private_addresses=True)
MAX_BYTES = 1 << 20


class FakeDns:
    """Answers as configured; the last answer of a name is repeated. An address is its own answer."""

    def __init__(self, **names: Sequence[Sequence[str]]) -> None:
        self.names = {name.replace("_", "."): list(answers) for name, answers in names.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.names:
            return [host]
        answers = self.names[host]
        return answers.pop(0) if len(answers) > 1 else answers[0]


class LoopbackOnly(AsyncioNetwork):
    """Records every address that is dialled, and connects only to loopback."""

    def __init__(self) -> None:
        self.dialled: list[str] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> AsyncioStream:
        self.dialled.append(host)
        if not ip_address(host).is_loopback:
            raise httpcore.ConnectError("not from a test")
        return await super().connect_tcp(host, port, timeout, local_address, socket_options)


@dataclass
class Delivery:
    """What a test works with."""

    folder: Path
    cache: BlobCache
    downloader: Downloader
    network: LoopbackOnly
    server: MisbehavingServer
    content: bytes
    progress: list[Any] = field(default_factory=list)

    def blob(self, content: bytes | None = None, *, size: int | None = -1, **url: Any) -> BlobRef:
        """What an honest publisher would have promised; `size=None` promises none."""
        promised = self.content if content is None else content
        return BlobRef(self.server.url(**url), checksum_of(promised), len(promised) if size == -1 else size)

    async def fetch(
        self,
        blob: BlobRef | None = None,
        *,
        kind: BlobKind = "model",
        max_bytes: int = MAX_BYTES,
        on_progress: OnDownloadProgress | None = None,
    ) -> CachedBlob:
        """Fetch, and check that the file has the checksum that is its name."""
        async with self.cache.fetch(
            blob or self.blob(), kind=kind, max_bytes=max_bytes, on_progress=on_progress
        ) as cached:
            assert checksum_of(cached.path.read_bytes()) == cached.checksum == cached.path.name
            return cached

    async def refused(self, blob: BlobRef | None = None, **options: Any) -> ScoringError:
        """The failure of a fetch; no file may be left, and no secret be in its message."""
        blob = blob or self.blob()
        before = self.files()
        with pytest.raises(ScoringError) as caught:
            await self.fetch(blob, **options)
        assert [name for name in self.files() if not name.startswith("probe")] == before
        await until(lambda: self.files() == before)  # a failed write has the disk probed with a small file
        for secret in (blob.url, "127.0.0.1", "token", str(self.folder)):
            assert secret not in caught.value.detail
        return caught.value

    async def assert_still_works(self) -> None:
        """The next download, from an honest server, succeeds."""
        async with MisbehavingServer(honest(self.content)) as server:
            cached = await self.fetch(BlobRef(server.url(), checksum_of(self.content), len(self.content)))
            assert not cached.was_cached

    @asynccontextmanager
    async def stored(self, content: bytes) -> AsyncIterator[CachedBlob]:
        """A blob with these bytes, in use while inside the block, and still in the cache after."""
        async with MisbehavingServer(honest(content)) as server:
            blob = BlobRef(server.url(), checksum_of(content), len(content))
            async with self.cache.fetch(blob, kind="model", max_bytes=MAX_BYTES) as cached:
                yield cached

    def files(self) -> list[str]:
        """The names of all blobs, partial files and their notes."""
        own = ("lock", "urls", "CACHEDIR.TAG")
        return sorted(
            path.name
            for path in self.folder.rglob("*")
            if path.is_file() and path.relative_to(self.folder).parts[0] not in own
        )

    def bytes_sent(self, server: MisbehavingServer | None = None) -> int:
        """Bytes of body that the ranges asked for have in all."""
        requests = (server or self.server).requests
        spans = [request.span(len(self.content)) or (0, len(self.content)) for request in requests]
        return sum(end - start for start, end in spans)


@asynccontextmanager
async def delivery(
    folder: Path,
    behave: Behaviour | None = None,
    *,
    content: bytes | None = None,
    tls: bool = True,
    policy: UrlPolicy = LOCAL,
    limits: DownloadLimits = QUICK,
    dns: Resolver | None = None,
    max_bytes: int = 64 << 20,
    retry_seconds: float = 5.0,
) -> AsyncIterator[Delivery]:
    """Everything up and running; an honest server by default."""
    content = random_bytes(300_000) if content is None else content
    network = LoopbackOnly()
    downloader = Downloader(
        policy, limits, ssl_context=client_context(), resolver=dns or FakeDns(), network=network
    )
    cache = BlobCache(folder, downloader, max_bytes=max_bytes, retry_seconds=retry_seconds)
    await cache.start()
    try:
        async with MisbehavingServer(behave or honest(content), tls) as server:
            yield Delivery(folder, cache, downloader, network, server, content)
    finally:
        await cache.close()
        await downloader.aclose()
