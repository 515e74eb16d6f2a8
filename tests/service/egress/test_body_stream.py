"""Heads and bodies: what h11 parses, what is read without it, and that both agree where a reply ends."""

import asyncio
from dataclasses import replace
from pathlib import Path

import httpcore
import httpx
import pytest

from service.egress.body_stream import BodyStream, PlainBody, body_of
from tests.misbehaving_server import (
    Behaviour,
    MisbehavingServer,
    Reply,
    Request,
    client_context,
    interim_flood,
    random_bytes,
)
from tests.service.delivery import QUICK, Delivery, delivery

BODY = random_bytes(100_000)

PLAIN = {
    "plain": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "range": b"HTTP/1.1 206 Partial\r\ncontent-length:100000\r\nContent-Range: bytes 0-9/10\r\n\r\n",
    "bare newlines": b"HTTP/1.1 200 OK\nContent-Length: 100000\n\n",
    "another header that ends the same": (
        b"HTTP/1.1 200 OK\r\nX-Content-Length: 100000\r\nContent-Length: 100000\r\n\r\n"
    ),
    "after interim replies": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Hints\r\nContent-Length: 7\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
    ),
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 100000\r\n\r\n",
}
THROUGH_H11 = {
    "unknown version": b"HTTP/9.9 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "same length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nContent-Length: 100000\r\n\r\n",
    "no length": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n",
    "old": b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 100000, 100000\r\n\r\n",
}
REFUSED = {
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\nContent-Length: 5\r\n\r\n",
    "length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: +100000\r\n\r\n",
    "negative length": b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
    "length in hex": b"HTTP/1.1 200 OK\r\nContent-Length: 0x10\r\n\r\n",
    "folded length": b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n 00\r\n\r\n",
    "space before the colon": b"HTTP/1.1 200 OK\r\nContent-Length : 100000\r\nX: y\r\n\r\n",
    "gzip transfer": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "blank line first": b"\r\nHTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n",
    "null in a header": b"HTTP/1.1 200 OK\r\nX: \x00\r\nContent-Length: 100000\r\n\r\n",
}


def _saying(head: bytes, body: bytes = BODY) -> Behaviour:
    async def behave(request: Request, reply: Reply) -> None:
        await reply.raw(head + body)
        if b"Connection: close" in head or head.startswith(b"HTTP/1.0"):
            reply.writer.close()

    return behave


async def _read(d: Delivery) -> tuple[bytes, bool, str]:
    async with d.downloader.get(d.server.url(), {}) as response, body_of(response) as body:
        buffer, content = bytearray(7000), b""
        while num_bytes := await body.read_into(memoryview(buffer)):
            content += buffer[:num_bytes]
        return content, isinstance(response.stream, PlainBody), response.headers.get("content-length", "")


@pytest.mark.parametrize("head", PLAIN.values(), ids=PLAIN.keys())
async def test_a_plain_body_is_read_without_h11_and_the_connection_reused(
    tmp_path: Path, head: bytes
) -> None:
    async with delivery(tmp_path, _saying(head)) as d:
        for _ in range(3):
            assert await _read(d) == (BODY, True, "100000")
        assert len(d.network.dialled) == 1


@pytest.mark.parametrize("head", THROUGH_H11.values(), ids=THROUGH_H11.keys())
async def test_any_other_body_goes_through_h11(tmp_path: Path, head: bytes) -> None:
    async with delivery(tmp_path, _saying(head)) as d:
        content, is_plain, _ = await _read(d)
        assert (content, is_plain) == (BODY, False)


@pytest.mark.parametrize("head", REFUSED.values(), ids=REFUSED.keys())
async def test_a_head_that_h11_refuses_is_refused(tmp_path: Path, head: bytes) -> None:
    async with delivery(tmp_path, _saying(head), limits=replace(QUICK, max_attempts=2)) as d:
        assert (await d.refused(d.blob(BODY))).full_code == "model-unavailable"
        await d.assert_still_works()


async def test_a_flood_of_interim_heads_ends_a_try_at_once(tmp_path: Path) -> None:
    limits = replace(QUICK, max_attempts=2, base_timeout_seconds=10.0)
    async with delivery(tmp_path, interim_flood, limits=limits) as d:
        assert (await d.refused()).full_code == "model-unavailable"
        assert len(d.server.requests) == 2
        await d.assert_still_works()


@pytest.mark.parametrize("num_interim", [16, 17])
async def test_sixteen_interim_heads_are_allowed_for_each_request(tmp_path: Path, num_interim: int) -> None:
    head = b"HTTP/1.1 103 Hints\r\n\r\n" * num_interim + PLAIN["plain"]
    async with delivery(tmp_path, _saying(head)) as d:
        if num_interim == 16:
            for _ in range(3):
                assert await _read(d) == (BODY, True, "100000")
        else:
            with pytest.raises(httpx.RemoteProtocolError):
                await _read(d)


async def test_a_head_may_be_received_byte_by_byte(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"
        for i in range(len(head)):
            await reply.raw(head[i : i + 1])
            await asyncio.sleep(0.001)
        await reply.raw(BODY)

    async with delivery(tmp_path, behave) as d:
        assert await _read(d) == (BODY, True, "100000")


async def test_bytes_after_a_body_are_never_part_of_it_nor_a_good_reply(tmp_path: Path) -> None:
    extra = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong"
    async with delivery(tmp_path, _saying(PLAIN["plain"], BODY + extra)) as d:
        assert (await _read(d))[0] == BODY
        assert (await d.fetch(d.blob(BODY))).size == len(BODY)


SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + BODY[:1000]
IN_CHUNKS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + BODY[:1000] + b"\r\n0\r\n\r\n"
FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + bytes(1000)


@pytest.mark.parametrize("delay", [0.0, 0.05], ids=["at once", "late"])
@pytest.mark.parametrize("reply_with", [SHORT, IN_CHUNKS], ids=["plain", "chunked"])
async def test_what_follows_a_body_is_never_the_reply_to_the_next_request(
    tmp_path: Path, reply_with: bytes, delay: float
) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        await reply.raw(reply_with if delay else reply_with + FORGED)
        if delay:
            await asyncio.sleep(delay)
            await reply.raw(FORGED)

    async with delivery(tmp_path, behave) as d:
        for _ in range(3):
            assert (await _read(d))[0] == BODY[:1000]
            await asyncio.sleep(2 * delay)
        assert len(d.network.dialled) == 3


async def test_data_on_an_idle_connection_is_noticed_just_before_the_request(tmp_path: Path) -> None:
    """The pool has found the connection idle; then data is received, before the request is sent."""
    async with delivery(tmp_path, _saying(PLAIN["plain"])) as d:
        dialled = BodyStream(await d.network.connect_tcp("127.0.0.1", d.server.port))
        stream = await dialled.start_tls(client_context(), "localhost")
        await stream.write(b"GET / HTTP/1.1\r\n\r\n" * 2)
        while not stream.get_extra_info("is_readable"):
            await asyncio.sleep(0.001)
        with pytest.raises(httpcore.RemoteProtocolError):
            await stream.write(b"GET / HTTP/1.1\r\n\r\n")
        await stream.aclose()


async def test_a_connection_with_half_a_body_on_it_is_not_used_again(tmp_path: Path) -> None:
    async with delivery(tmp_path, _saying(PLAIN["plain"])) as d:
        for _ in range(2):
            async with d.downloader.get(d.server.url(), {}) as response, body_of(response) as body:
                assert await body.read_into(memoryview(bytearray(10))) == 10
        assert len(d.network.dialled) == 2


async def test_data_before_the_handshake_is_never_taken_for_a_reply(tmp_path: Path) -> None:
    """Somebody in between may write into a connection before it is encrypted."""

    async def speak_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwrong")
        await asyncio.sleep(0.2)
        writer.transport.abort()

    server = await asyncio.start_server(speak_first, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with delivery(tmp_path, limits=replace(QUICK, max_attempts=2)) as d:
        failure = await d.refused(replace(d.blob(b"wrong"), url=f"https://127.0.0.1:{port}/"))
        assert failure.full_code == "model-unavailable"
        async with MisbehavingServer(_saying(PLAIN["plain"])) as honest:
            assert (await d.fetch(replace(d.blob(BODY), url=honest.url()))).size == len(BODY)
    server.close()
    await server.wait_closed()
    await asyncio.sleep(0.25)
