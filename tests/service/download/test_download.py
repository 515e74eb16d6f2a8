"""Every row of the table of faults of a download, against real sockets and real TLS."""

import asyncio
import contextlib
import gzip
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import h11
import pytest

from service.blob import BlobRef
from service.checksum import checksum_of
from service.download.downloader import Downloader
from service.download.throughput import DownloadProgress
from service.egress.resolver import SystemResolver
from service.egress.url_policy import UrlPolicy
from service.errors import ScoringError
from tests import misbehaving_server as servers
from tests.misbehaving_server import NAME, MisbehavingServer, Reply, Request, random_bytes
from tests.service.delivery import MAX_BYTES, QUICK, FakeDns, LoopbackOnly, delivery

CONTENT = random_bytes(300_000)
PUBLIC_ONLY = UrlPolicy()


# -- addresses -----------------------------------------------------------------------------------------------

FORBIDDEN = {
    "private": "10.1.2.3",
    "private-172": "172.31.255.254",
    "private-192": "192.168.0.1",
    "loopback": "127.0.0.1",
    "loopback-other": "127.255.255.254",
    "this-host": "0.0.0.0",
    "link-local-metadata": "169.254.169.254",
    "carrier-grade-nat": "100.64.0.1",
    "nat-metadata": "100.100.100.200",
    "cloud-agent": "168.63.129.16",
    "protocol-assignments": "192.0.0.192",
    "benchmarking": "198.19.0.1",
    "documentation": "203.0.113.7",
    "multicast": "224.0.0.1",
    "broadcast": "255.255.255.255",
    "v6-loopback": "::1",
    "v6-unspecified": "::",
    "v6-mapped": "::ffff:127.0.0.1",
    "v6-mapped-public": "::ffff:8.8.8.8",
    "v6-compatible": "::7f00:1",
    "v6-nat64": "64:ff9b::7f00:1",
    "v6-nat64-local": "64:ff9b:1::a00:1",
    "v6-6to4": "2002:7f00:1::1",
    "v6-teredo": "2001:0:4136:e378:8000:63bf:80ff:fffe",
    "v6-isatap": "2a00:1450::5efe:7f00:1",
    "v6-unique-local-metadata": "fd00:ec2::254",
    "v6-link-local": "fe80::1",
    "v6-link-local-zone": "fe80::1%1",
    "v6-site-local": "fec0::1",
    "v6-multicast": "ff02::1",
    "v6-documentation": "2001:db8::1",
}


@pytest.mark.parametrize("address", FORBIDDEN.values(), ids=FORBIDDEN.keys())
async def test_forbidden_address_is_never_dialled(tmp_path: Path, address: str) -> None:
    dns = FakeDns(files_example=[[address]])
    async with delivery(tmp_path, policy=PUBLIC_ONLY, dns=dns) as d:
        failure = await d.refused(BlobRef(d.server.url(host=NAME)))
        assert (failure.full_code, failure.fault) == ("url-forbidden", "model_owner")
        assert d.network.dialled == []
        assert d.server.requests == []
        assert address not in failure.detail


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "224.0.0.1", "fe80::1", "::ffff:10.0.0.1", "0.0.0.0"),
        *("100.100.100.200", "fd00:ec2::254", "fd20:ce::254", "fd20:00ce:0:0::0254"),
    ],
)
async def test_private_addresses_allowed_still_leaves_these_out(tmp_path: Path, address: str) -> None:
    async with delivery(tmp_path, dns=FakeDns(files_example=[[address]])) as d:
        assert (await d.refused(d.blob(host=NAME), kind="data")).full_code == "url-forbidden"
        assert d.network.dialled == []
        await d.assert_still_works()


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "127.1", "0x7f000001", "localhost"])
async def test_another_spelling_of_loopback_is_checked_by_its_address(host: str) -> None:
    network = LoopbackOnly()
    downloader = Downloader(PUBLIC_ONLY, replace(QUICK, base_timeout_seconds=5.0), network=network)
    with pytest.raises(Exception, match="address that is not public") as caught:
        await downloader.read_head(f"https://{host}/file", "model", 10)
    assert getattr(caught.value, "full_code", None) == "url-forbidden"
    assert network.dialled == []
    await downloader.aclose()


@pytest.mark.parametrize(
    "url",
    [
        "https://user@files.example/file",
        "https://user:token@files.example/file",
        "https://files.example/file#part",
        "https://[fe80::1%25eth0]/file",
        "https://[fe80::1%eth0]/file",
        "ftp://files.example/file",
        "file:///etc/passwd",
        "//files.example/file",
        "files.example/file",
        "https:///file",
        "https://files.example:0/file",
        "https://files.example:99999/file",
        "https://files.example\\@127.0.0.1/file",
        "https://files.example/fi le",
        "https://files.example/file\r\nHost: elsewhere",
        "https://files.exa%6dple/file",
        "https://" + "a" * 300 + "/file",
        "https://files..example/file",
        "https://xn--a.example/file",
        "https://0177.0.0.1/file",
        "https://127.0.0.256/file",
        "https://files.example/" + "a" * 9000,
        "?",
    ],
)
async def test_a_url_of_bad_form_is_refused_without_a_look_up(tmp_path: Path, url: str) -> None:
    dns = FakeDns()
    async with delivery(tmp_path, dns=dns) as d:
        failure = await d.refused(BlobRef(url, checksum_of(CONTENT)), kind="data")
        assert (failure.full_code, failure.fault) == ("invalid-url", "data_submitter")
        assert d.network.dialled == []
        assert dns.asked == []


async def test_plain_http_is_forbidden_unless_allowed(tmp_path: Path) -> None:
    async with delivery(tmp_path, tls=False) as d:
        assert (await d.refused()).full_code == "url-forbidden"
        assert d.network.dialled == []
    async with delivery(tmp_path, tls=False, policy=UrlPolicy(True, True)) as d:
        assert not (await d.fetch()).was_cached


async def test_a_name_is_dialled_by_address_and_its_certificate_checked_by_name(tmp_path: Path) -> None:
    dns = FakeDns(files_example=[["127.0.0.1"]])
    async with delivery(tmp_path, dns=dns) as d:
        await d.fetch(d.blob(host=NAME))
        assert d.network.dialled[0] == "127.0.0.1"
        assert d.server.server_names[0] == NAME
        assert d.server.requests[0].headers["host"] == f"{NAME}:{d.server.port}"


@pytest.mark.parametrize("host", ["xn--bcher-kva.example", "files.xn--p1ai", "XN--bcher-kva.Example"])
async def test_a_name_in_punycode_is_a_name(tmp_path: Path, host: str) -> None:
    class Anywhere(FakeDns):
        async def __call__(self, host: str, port: int) -> list[str]:
            self.asked.append(host)
            return ["127.0.0.1"]

    dns, policy = Anywhere(), UrlPolicy(True, True)
    async with delivery(tmp_path, tls=False, dns=dns, policy=policy) as d:
        assert not (await d.fetch(d.blob(host=host))).was_cached
        assert set(dns.asked) == {host.lower()}
        assert d.server.requests[0].headers["host"] == f"{host.lower()}:{d.server.port}"


async def test_a_certificate_for_another_name_is_refused(tmp_path: Path) -> None:
    dns = FakeDns(elsewhere_example=[["127.0.0.1"]])
    async with delivery(tmp_path, dns=dns) as d:
        failure = await d.refused(d.blob(host="elsewhere.example"))
        assert (failure.full_code, failure.retryable) == ("model-unavailable", True)
        assert d.server.requests == []
        await d.assert_still_works()


# -- DNS -----------------------------------------------------------------------------------------------------


async def test_after_dns_rebinding_the_second_answer_is_checked_too(tmp_path: Path) -> None:
    dns = FakeDns(files_example=[["127.0.0.1"], ["169.254.169.254"]])
    async with delivery(tmp_path, servers.breaking_after(50_000, CONTENT, reset=False), dns=dns) as d:
        failure = await d.refused(d.blob(host=NAME))
        assert failure.full_code == "url-forbidden"
        assert set(d.network.dialled) == {"127.0.0.1"}
        await d.assert_still_works()


async def test_a_name_is_resolved_once_for_each_connection(tmp_path: Path) -> None:
    dns = FakeDns(files_example=[["127.0.0.1"], ["169.254.169.254"]])
    async with delivery(tmp_path, dns=dns, limits=replace(QUICK, num_connections=1)) as d:
        await d.fetch(d.blob(host=NAME))
        assert dns.asked == [NAME]


@pytest.mark.parametrize("answers", [["127.0.0.1", "169.254.169.254"], ["::1", "127.0.0.1", "0.0.0.0"]])
async def test_one_bad_answer_among_good_ones_forbids_the_name(tmp_path: Path, answers: list[str]) -> None:
    async with delivery(tmp_path, dns=FakeDns(files_example=[answers])) as d:
        assert (await d.refused(d.blob(host=NAME))).full_code == "url-forbidden"
        assert d.network.dialled == []
        await d.assert_still_works()


async def test_a_name_without_an_answer_is_unavailable(tmp_path: Path) -> None:
    async with delivery(tmp_path, dns=FakeDns(files_example=[[]])) as d:
        assert (await d.refused(d.blob(host=NAME), kind="data")).full_code == "data-unavailable"
        await d.assert_still_works()


async def test_the_next_address_is_dialled_where_the_first_does_not_answer(tmp_path: Path) -> None:
    dns = FakeDns(files_example=[["127.0.0.2", "127.0.0.1"]])  # the server listens on one only
    async with delivery(tmp_path, dns=dns) as d:
        await d.fetch(d.blob(host=NAME))
        assert d.network.dialled[:2] == ["127.0.0.2", "127.0.0.1"]


@contextlib.contextmanager
def _tarpit(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The system's resolver hangs for some names; every look-up is noted."""
    looked_up, over = [], threading.Event()
    real = socket.getaddrinfo

    def getaddrinfo(host: str, *args: Any, **options: Any) -> Any:
        looked_up.append(host)
        if host.endswith("tarpit.example"):
            over.wait()
            raise socket.gaierror("timed out")
        return real(host, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", getaddrinfo)
        try:
            yield looked_up
        finally:
            over.set()


async def test_a_look_up_does_not_wait_behind_others_that_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = SystemResolver()
    with _tarpit(monkeypatch):
        hanging = [asyncio.create_task(resolver(f"{i}.tarpit.example", 443)) for i in range(200)]
        assert await asyncio.wait_for(resolver("127.0.0.1", 443), 10) == ["127.0.0.1"]
    await asyncio.gather(*hanging, return_exceptions=True)
    resolver.close()


async def test_who_asks_for_the_same_host_shares_one_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = SystemResolver()
    with _tarpit(monkeypatch) as looked_up:
        hanging = [asyncio.create_task(resolver("tarpit.example", 443 + i)) for i in range(50)]
        while not looked_up:
            await asyncio.sleep(0.001)
        hanging[0].cancel()  # the one that began it: the others go on waiting
        await asyncio.sleep(0.01)
        assert [task.done() for task in hanging] == [True] + [False] * 49
        assert looked_up == ["tarpit.example"]
    failures = await asyncio.gather(*hanging, return_exceptions=True)
    assert [type(failure) for failure in failures[1:]] == [socket.gaierror] * 49
    with _tarpit(monkeypatch) as looked_up:  # an answer is never kept for later
        for _ in range(2):
            await resolver("127.0.0.1", 443)
        assert looked_up == ["127.0.0.1"] * 2
    resolver.close()


# -- redirects -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed(tmp_path: Path, status: int) -> None:
    behave = servers.redirecting("/elsewhere?a=b", servers.honest(CONTENT), num_times=3, status=status)
    async with delivery(tmp_path, behave, limits=replace(QUICK, num_connections=1)) as d:
        assert not (await d.fetch()).was_cached
        assert d.server.requests[3].target == "/elsewhere?a=b"


async def test_a_fourth_redirect_is_not_followed(tmp_path: Path) -> None:
    behave = servers.redirecting("/elsewhere", servers.honest(CONTENT), num_times=1000)
    async with delivery(tmp_path, behave, limits=replace(QUICK, base_timeout_seconds=10.0)) as d:
        assert (await d.refused()).full_code == "model-unavailable"
        assert len(d.server.requests) % 4 == 0
        await d.assert_still_works()


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("https://169.254.169.254/latest/meta-data", "url-forbidden"),
        ("https://metadata.example/", "url-forbidden"),
        ("http://127.0.0.1/file", "url-forbidden"),
        ("https://user@127.0.0.1/file", "invalid-url"),
        ("https://127.0.0.1/file#part", "invalid-url"),
        ("file:///etc/passwd", "invalid-url"),
        ("https://[::1", "invalid-url"),
    ],
)
async def test_a_redirect_meets_the_same_guard(tmp_path: Path, location: str, code: str) -> None:
    dns = FakeDns(metadata_example=[["fd00:ec2::254", "169.254.169.254"]])
    behave = servers.redirecting(location, servers.honest(CONTENT), num_times=1000)
    async with delivery(tmp_path, behave, dns=dns) as d:
        assert (await d.refused()).full_code == code
        assert set(d.network.dialled) == {"127.0.0.1"}
        await d.assert_still_works()


async def test_a_redirect_never_leaves_encryption_behind(tmp_path: Path) -> None:
    async with MisbehavingServer(servers.honest(CONTENT), tls=False) as plain:
        behave = servers.redirecting(plain.url(), servers.honest(CONTENT), num_times=1000)
        async with delivery(tmp_path, behave, policy=UrlPolicy(True, True)) as d:
            assert (await d.refused()).full_code == "url-forbidden"
            assert plain.requests == []
            await d.assert_still_works()


# -- time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "behave",
    [
        servers.silent,
        servers.slow_headers,
        servers.slow_body(CONTENT, bytes_per_second=500),
    ],
    ids=["silent", "slow-headers", "slow-body"],
)
async def test_too_slow_is_a_timeout_soon(tmp_path: Path, behave: servers.Behaviour) -> None:
    async with delivery(tmp_path, behave) as d:
        async with asyncio.timeout(30):  # the publisher would take longer
            failure = await d.refused()
        assert (failure.full_code, failure.fault, failure.retryable) == (
            "download-timeout",
            "model_owner",
            True,
        )
        await d.assert_still_works()


async def test_fast_at_first_and_then_asleep_is_a_timeout_too(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        start, end = request.span(len(CONTENT)) or (0, len(CONTENT))
        await reply.head(
            206, content_length=end - start, content_range=f"bytes {start}-{end - 1}/{len(CONTENT)}"
        )
        await reply.raw(CONTENT[start : start + 20_000])
        await reply.drip(CONTENT[start + 20_000 : end], bytes_per_second=100)

    # By its size alone it might take 15 seconds; and too little is received to be kept for another attempt.
    limits = replace(QUICK, min_bytes_per_second=20_000.0, sync_bytes=1 << 20)
    async with delivery(tmp_path, behave, limits=limits) as d:
        began = asyncio.get_running_loop().time()
        assert (await d.refused()).full_code == "download-timeout"
        assert asyncio.get_running_loop().time() - began < 3
        await d.assert_still_works()


async def test_no_time_is_spent_without_end_on_a_file_that_never_stays(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        start, end = request.span(len(CONTENT)) or (0, len(CONTENT))
        content_range = f"bytes {start}-{end - 1}/{len(CONTENT)}"
        await reply.head(
            206, content_length=end - start, content_range=content_range, etag=f'"{request.number}"'
        )
        await reply.raw(CONTENT[start:end])

    async with delivery(tmp_path, behave) as d:
        assert (await d.refused()).full_code == "model-unavailable"
        await d.assert_still_works()


async def test_a_disk_that_is_slow_is_not_the_publishers_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        time.sleep(0.02)  # 200 kB/s, of the 2 MB/s that the publisher is held to
        return real(fd, data, offset)

    strict = replace(QUICK, min_bytes_per_second=2e6, num_connections=1)
    async with delivery(tmp_path, limits=strict) as d:
        monkeypatch.setattr(os, "pwrite", pwrite)
        assert not (await d.fetch()).was_cached


# -- length --------------------------------------------------------------------------------------------------


async def test_a_length_other_than_promised_is_refused_before_the_body(tmp_path: Path) -> None:
    for length in (100, 299_999, 300_001):
        async with delivery(tmp_path, servers.replying(200, b"", content_length=length)) as d:
            failure = await d.refused()
            assert (failure.full_code, failure.fault) == ("model-size-mismatch", "model_owner")
            await d.assert_still_works()
            (tmp_path / "blobs" / checksum_of(CONTENT)).unlink()


async def test_a_length_over_the_limit_is_refused_before_the_body(tmp_path: Path) -> None:
    for blob_size in (None, MAX_BYTES + 1):
        async with delivery(tmp_path, servers.replying(200, b"", content_length=MAX_BYTES + 1)) as d:
            failure = await d.refused(d.blob(size=blob_size))
            assert failure.full_code == "model-too-large"
            assert bool(d.server.requests) == (blob_size is None)


@pytest.mark.parametrize("size", [None, 300_000], ids=["no-promise", "promised"])
async def test_an_endless_body_is_cut_off(tmp_path: Path, size: int | None) -> None:
    async with delivery(tmp_path, servers.endless) as d:
        failure = await d.refused(d.blob(size=size))
        assert failure.full_code == ("model-too-large" if size is None else "model-size-mismatch")
        await d.assert_still_works()


async def test_a_body_without_a_length_is_counted(tmp_path: Path) -> None:
    for behave in (servers.chunked(CONTENT[:1000], CONTENT[1000:]), servers.closing_after(CONTENT)):
        for size in (None, len(CONTENT)):
            async with delivery(tmp_path, behave) as d:
                assert (await d.fetch(d.blob(size=size))).size == len(CONTENT)
                (tmp_path / "blobs" / checksum_of(CONTENT)).unlink()


async def test_a_body_that_ends_early_by_its_own_word_has_the_wrong_size(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.chunked(CONTENT[:-1])) as d:
        assert (await d.refused()).full_code == "model-size-mismatch"
        await d.assert_still_works()


async def test_a_body_that_may_have_been_cut_off_is_retryable(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.closing_after(CONTENT[:-1])) as d:
        assert (await d.refused()).full_code == "model-unavailable"
        await d.assert_still_works()


async def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    for size in (0, None):
        async with delivery(tmp_path, content=b"") as d:
            assert (await d.fetch(d.blob(size=size))).size == 0
            (tmp_path / "blobs" / checksum_of(b"")).unlink()


# -- codings -------------------------------------------------------------------------------------------------


async def test_a_compressed_body_is_refused_unread(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(10 << 20))
    for coding in ("gzip", "deflate, gzip", "br", "zstd"):
        async with delivery(tmp_path, servers.replying(200, bomb, content_encoding=coding)) as d:
            failure = await d.refused(d.blob(size=None))
            assert failure.full_code == "model-unavailable"
            assert d.server.requests[0].headers["accept-encoding"] == "identity"
            assert len(d.server.requests) == 1


async def test_bytes_that_look_compressed_stay_as_they_are(tmp_path: Path) -> None:
    async with delivery(tmp_path, content=gzip.compress(b"weights" * 1000)) as d:
        assert (await d.fetch()).size == len(d.content)


# -- ranges --------------------------------------------------------------------------------------------------


async def test_a_large_file_is_requested_in_parts(tmp_path: Path) -> None:
    content = random_bytes(MAX_BYTES)
    async with delivery(tmp_path, content=content) as d:
        await d.fetch()
        assert len(d.server.requests) == MAX_BYTES // QUICK.part_bytes
        assert d.bytes_sent() == MAX_BYTES


async def test_slow_connections_are_used_in_parallel(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.slow_body(CONTENT, bytes_per_second=200_000)) as d:
        await d.fetch()
        assert 1 < len(d.network.dialled) <= QUICK.num_connections
        assert d.bytes_sent() == len(CONTENT)


async def test_ranges_that_are_ignored_give_the_whole_in_one(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.ignoring_ranges(CONTENT)) as d:
        await d.fetch()
        assert len(d.server.requests) == 1


def _wrong_range(rewrite: Callable[[int, int, int], str]) -> servers.Behaviour:
    async def behave(request: Request, reply: Reply) -> None:
        span = request.span(len(CONTENT))
        if span is None:
            await servers.honest(CONTENT)(request, reply)
            return
        start, end = span
        content_range = rewrite(start, end, len(CONTENT))
        await reply.head(206, content_length=end - start, content_range=content_range)
        await reply.raw(CONTENT[start:end])

    return behave


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda start, end, size: f"bytes {start + 1}-{end}/{size}",
        lambda start, end, size: f"bytes {start}-{end + 5}/{size}",
        lambda start, end, size: f"bytes {end}-{start}/{size}",
        lambda start, end, size: f"items {start}-{end - 1}/{size}",
        lambda start, end, size: f"bytes {start}-{end - 1}/{'9' * 30}",
        lambda start, end, size: "bytes",
        lambda start, end, size: "",
    ],
    ids=["shifted", "longer", "reversed", "unit", "overflow", "cut", "empty"],
)
async def test_a_wrong_content_range_costs_a_clean_restart(
    tmp_path: Path, rewrite: Callable[[int, int, int], str]
) -> None:
    async with delivery(tmp_path, _wrong_range(rewrite)) as d:
        await d.fetch()
        assert "range" not in d.server.requests[-1].headers


async def test_a_range_of_another_size_is_a_size_mismatch(tmp_path: Path) -> None:
    async with delivery(
        tmp_path, _wrong_range(lambda start, end, size: f"bytes {start}-{end - 1}/{size + 1}")
    ) as d:
        assert (await d.refused()).full_code == "model-size-mismatch"
        await d.assert_still_works()


async def test_a_range_without_a_total_is_good_where_the_size_was_promised(tmp_path: Path) -> None:
    behave = _wrong_range(lambda start, end, size: f"bytes {start}-{end - 1}/*")
    for size in (len(CONTENT), None):
        async with delivery(tmp_path, behave) as d:
            await d.fetch(d.blob(size=size))
            (tmp_path / "blobs" / checksum_of(CONTENT)).unlink()


async def test_shorter_ranges_than_asked_for_are_taken_as_they_are(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        start, end = request.span(len(CONTENT)) or (0, len(CONTENT))
        end = min(end, start + 10_000)
        await reply.head(
            206, content_length=end - start, content_range=f"bytes {start}-{end - 1}/{len(CONTENT)}"
        )
        await reply.raw(CONTENT[start:end])

    async with delivery(tmp_path, behave) as d:
        await d.fetch()


async def test_a_multipart_reply_costs_a_clean_restart(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        if "range" not in request.headers:
            await servers.honest(CONTENT)(request, reply)
            return
        body = b"--x\r\nContent-Range: bytes 0-9/300000\r\n\r\n0123456789\r\n--x--\r\n"
        await reply.head(206, content_length=len(body), content_type="multipart/byteranges; boundary=x")
        await reply.raw(body)

    async with delivery(tmp_path, behave) as d:
        await d.fetch()


@pytest.mark.parametrize("honours_if_range", [True, False])
async def test_an_etag_that_changes_midway_costs_a_clean_restart(
    tmp_path: Path, honours_if_range: bool
) -> None:
    old, new = random_bytes(len(CONTENT), seed=1), CONTENT

    async def behave(request: Request, reply: Reply) -> None:
        content, etag = (old, '"old"') if request.number < 2 else (new, '"new"')
        if honours_if_range and request.headers.get("if-range", etag) != etag:
            await servers.ignoring_ranges(content)(request, reply)
        else:
            await servers.honest(content, etag=etag)(request, reply)

    async with delivery(tmp_path, behave, limits=replace(QUICK, num_connections=1)) as d:
        await d.fetch()
        assert d.server.requests[1].headers["if-range"] == '"old"'


@pytest.mark.parametrize("etag", ['"\u00e9"', '"a b"', '"', "plain", '"' + "x" * 300 + '"', 'W/"weak"'])
async def test_an_etag_that_is_none_is_never_sent_back(tmp_path: Path, etag: str) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        start, end = request.span(len(CONTENT)) or (0, len(CONTENT))
        head = f"HTTP/1.1 206 Partial\r\nETag: {etag}\r\nContent-Length: {end - start}\r\n"
        head += f"Content-Range: bytes {start}-{end - 1}/{len(CONTENT)}\r\n\r\n"
        await reply.raw(head.encode() + CONTENT[start : start + 40_000])
        reply.writer.close()

    async with delivery(tmp_path, behave, limits=replace(QUICK, num_connections=1)) as d:
        await d.fetch(d.blob(size=None))
        assert len(d.server.requests) > 3
        assert not any("if-range" in request.headers for request in d.server.requests)


def _rewrite_note(folder: Path, **changes: object) -> None:
    (note,) = folder.rglob("*.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | changes))


@pytest.mark.parametrize("etag", ['"\u00e9"', 5, [], ""])
async def test_an_etag_from_an_earlier_attempt_is_checked_again(tmp_path: Path, etag: object) -> None:
    broken = servers.breaking_after(10_000, CONTENT, reset=False)
    limits = replace(QUICK, num_connections=1, max_attempts=6, part_bytes=1 << 20)
    async with delivery(tmp_path, broken, limits=limits) as d:
        with pytest.raises(ScoringError):
            await d.fetch()
        _rewrite_note(tmp_path, etag=etag)
        d.server.behave = servers.honest(CONTENT)
        d.server.requests.clear()
        await d.fetch()
        assert d.bytes_sent() == len(CONTENT) - 60_000


async def test_parts_of_two_files_without_etags_are_found_out_by_the_checksum(tmp_path: Path) -> None:
    other = random_bytes(len(CONTENT), seed=1)

    async def behave(request: Request, reply: Reply) -> None:
        await servers.honest(other if request.number % 2 else CONTENT)(request, reply)

    async with delivery(tmp_path, behave) as d:
        assert (await d.refused()).full_code == "model-checksum-mismatch"
        await d.assert_still_works()


async def test_more_bytes_than_the_range_has_never_reach_the_file(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        span = request.span(len(CONTENT))
        if span is None:
            await servers.honest(CONTENT)(request, reply)
            return
        content_range = f"bytes {span[0]}-{span[1] - 1}/{len(CONTENT)}"
        await reply.head(206, transfer_encoding="chunked", content_range=content_range)
        await reply.chunk(CONTENT[span[0] : span[1]] + b"more")
        await reply.chunk(b"")

    async with delivery(tmp_path, behave) as d:
        await d.fetch()


# -- broken connections --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "truncated"])
async def test_a_download_is_resumed_after_a_broken_connection(tmp_path: Path, reset: bool) -> None:
    behave = servers.breaking_after(40_000, CONTENT, reset=reset, num_times=4)
    async with delivery(tmp_path, behave, limits=replace(QUICK, num_connections=1)) as d:
        await d.fetch()
        starts = [span[0] for request in d.server.requests if (span := request.span(len(CONTENT)))]
        assert starts == sorted(starts)
        assert d.server.requests[1].span(len(CONTENT)) == (40_000, 65_536)


async def test_several_connections_survive_that_one_breaks(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        if request.number in (2, 5):
            reply.reset()
            return
        await servers.slow_body(CONTENT, bytes_per_second=300_000)(request, reply)

    async with delivery(tmp_path, behave) as d:
        await d.fetch()


async def test_a_whole_without_ranges_that_breaks_starts_from_nothing(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        await reply.head(200, content_length=len(CONTENT))
        if request.number == 0:
            await reply.raw(CONTENT[:100_000])
            reply.writer.close()
        else:
            await reply.raw(CONTENT)

    async with delivery(tmp_path, behave) as d:
        await d.fetch()


@pytest.mark.parametrize("reset", [True, False], ids=["reset", "truncated"])
async def test_tries_are_bounded(tmp_path: Path, reset: bool) -> None:
    behave = servers.breaking_after(0, CONTENT, reset=reset)
    async with delivery(tmp_path, behave, limits=replace(QUICK, base_timeout_seconds=10.0)) as d:
        failure = await d.refused()
        assert (failure.full_code, failure.retryable) == ("model-unavailable", True)
        assert len(d.server.requests) == QUICK.max_attempts
        await d.assert_still_works()


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
async def test_a_server_in_trouble_is_asked_again(tmp_path: Path, status: int) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        if request.number < 2:
            await reply.head(status, content_length=0)
        else:
            await servers.honest(CONTENT)(request, reply)

    async with delivery(tmp_path, behave) as d:
        await d.fetch()


@pytest.mark.parametrize("status", [204, 304, 400, 401, 403, 404, 410, 451])
async def test_a_server_that_says_no_is_asked_once(tmp_path: Path, status: int) -> None:
    async with delivery(tmp_path, servers.replying(status)) as d:
        failure = await d.refused(kind="data")
        assert (failure.full_code, failure.fault) == ("data-unavailable", "data_submitter")
        assert len(d.server.requests) == 1


async def test_a_reply_that_is_not_http_is_unavailable(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        await reply.raw(b"SSH-2.0-OpenSSH_9.6\r\n" + bytes(range(256)) * 1000)

    async with delivery(tmp_path, behave) as d:
        assert (await d.refused()).full_code == "model-unavailable"
        await d.assert_still_works()


@pytest.mark.parametrize("error", [UnicodeError("?"), ValueError("?"), h11.LocalProtocolError("?")])
@pytest.mark.parametrize("num_good", [0, 1], ids=["in the head", "in the body"])
async def test_an_unexpected_error_of_the_http_libraries_is_unavailable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, num_good: int
) -> None:
    real = h11.Connection.next_event

    def stumbling(connection: h11.Connection) -> object:
        event = real(connection)
        if isinstance(event, (h11.Response, h11.Data)[num_good]):
            raise error
        return event

    limits = replace(QUICK, max_attempts=2)
    async with delivery(tmp_path, servers.chunked(CONTENT), limits=limits) as d:
        with monkeypatch.context() as patch:
            patch.setattr(h11.Connection, "next_event", stumbling)
            assert (await d.refused()).full_code == "model-unavailable"
        await d.assert_still_works()


async def test_headers_without_end_are_unavailable(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        await reply.raw(b"HTTP/1.1 200 OK\r\n" + b"X-Padding: x\r\n" * 100_000)

    async with delivery(tmp_path, behave) as d:
        assert (await d.refused()).full_code == "model-unavailable"
        await d.assert_still_works()


# -- bytes ---------------------------------------------------------------------------------------------------


async def test_wrong_bytes_are_a_checksum_mismatch(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.honest(random_bytes(len(CONTENT), seed=1))) as d:
        failure = await d.refused()
        assert (failure.full_code, failure.fault, failure.retryable) == (
            "model-checksum-mismatch",
            "model_owner",
            False,
        )
        await d.assert_still_works()


async def test_one_flipped_bit_is_a_checksum_mismatch(tmp_path: Path) -> None:
    content = bytearray(CONTENT)
    content[200_000] ^= 1
    async with delivery(tmp_path, servers.honest(bytes(content))) as d:
        assert (await d.refused(kind="data")).full_code == "data-checksum-mismatch"


# -- the environment, progress, the head -----------------------------------------------------------------------


async def test_proxies_in_the_environment_are_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("SSL_CERT_FILE", "/dev/null")
    async with delivery(tmp_path) as d:
        assert not (await d.fetch()).was_cached


async def test_no_identifying_header_is_sent(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.honest(CONTENT, set_cookie="a=b")) as d:
        await d.fetch()
        names = {name for request in d.server.requests for name in request.headers}
        assert names <= {"host", "user-agent", "accept", "accept-encoding", "range", "if-range"}


async def test_progress_goes_up_to_the_whole(tmp_path: Path) -> None:
    seen: list[DownloadProgress] = []
    async with delivery(tmp_path, servers.slow_body(CONTENT, bytes_per_second=2_000_000)) as d:
        await d.fetch(on_progress=seen.append)
    assert [progress.bytes_done for progress in seen] == sorted(progress.bytes_done for progress in seen)
    assert seen[-1].bytes_done == seen[-1].bytes_total == len(CONTENT)
    assert any(progress.bytes_per_second > 0 for progress in seen)


async def test_a_progress_callback_that_fails_harms_no_download(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(progress: DownloadProgress) -> None:
        raise RuntimeError("a bug elsewhere")

    async with delivery(tmp_path) as d:
        assert not (await d.fetch(on_progress=fail)).was_cached
    assert "a bug elsewhere" in caplog.text


async def test_the_head_of_a_file_is_read_alone(tmp_path: Path) -> None:
    for behave in (servers.honest(CONTENT), servers.ignoring_ranges(CONTENT)):
        async with delivery(tmp_path, behave) as d:
            head = await d.downloader.read_head(d.server.url(), "model", 1000)
            assert head == (CONTENT[:1000], len(CONTENT))


async def test_the_head_of_a_short_file_is_all_of_it(tmp_path: Path) -> None:
    async with delivery(tmp_path, content=b"short") as d:
        assert await d.downloader.read_head(d.server.url(), "model", 1000) == (b"short", 5)


@pytest.mark.parametrize(
    ("behave", "code"),
    [
        (servers.replying(404), "model-unavailable"),
        (servers.replying(200, gzip.compress(CONTENT), content_encoding="gzip"), "model-unavailable"),
        (servers.breaking_after(10, CONTENT, reset=True), "model-unavailable"),
        (servers.silent, "download-timeout"),
        (servers.slow_headers, "download-timeout"),
        (servers.redirecting("https://169.254.169.254/", servers.silent), "url-forbidden"),
    ],
    ids=["missing", "compressed", "reset", "silent", "slow-headers", "forbidden"],
)
async def test_reading_a_head_fails_like_a_download(
    tmp_path: Path, behave: servers.Behaviour, code: str
) -> None:
    async with delivery(tmp_path, behave) as d:
        with pytest.raises(Exception) as caught:
            await d.downloader.read_head(d.server.url(), "model", 1000)
        assert getattr(caught.value, "full_code", None) == code
