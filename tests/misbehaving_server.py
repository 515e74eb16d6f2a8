"""A server on loopback, with real sockets and real TLS, that misbehaves as configured.

A behaviour is an async function of one request and its reply; the ones below are named for what they do wrong.
"""

import asyncio
import contextlib
import functools
import random
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Thread
from types import TracebackType
from typing import Self

import trustme

NAME = "files.example"
"""The name in the certificate, beside localhost and the loopback addresses."""


@functools.cache
def certificate_authority() -> trustme.CA:
    """One for the whole run: keys take a while to make."""
    return trustme.CA()


@functools.cache
def client_context() -> ssl.SSLContext:
    """Trusts the servers of this module. One for the whole run: the system's certificates take a while to load."""
    context = ssl.create_default_context()
    certificate_authority().configure_trust(context)
    return context


@functools.cache
def _server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate_authority().issue_cert(NAME, "localhost", "127.0.0.1", "::1").configure_cert(context)
    return context


def random_bytes(num_bytes: int, seed: int = 0) -> bytes:
    """Content to publish, the same each time."""
    return random.Random(seed).randbytes(num_bytes)


@dataclass(frozen=True)
class Request:
    """What the client asked for."""

    target: str
    headers: dict[str, str]
    number: int
    """0 for the first request that the server has seen."""
    body: bytes = b""

    def span(self, size: int) -> tuple[int, int] | None:
        """The range asked for, first to one past the last; None for all."""
        if "range" not in self.headers:
            return None
        first, _, last = self.headers["range"].removeprefix("bytes=").partition("-")
        return int(first), min(int(last) + 1, size) if last else size


@dataclass
class Reply:
    """One reply on its way to the client."""

    writer: asyncio.StreamWriter

    async def head(self, status: int, **headers: object) -> None:
        """Status line and headers; `content_length=3` becomes `content-length: 3`."""
        lines = [f"HTTP/1.1 {status} Whatever"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        await self.raw(("\r\n".join(lines) + "\r\n\r\n").encode())

    async def raw(self, data: bytes) -> None:
        """Bytes as they are."""
        self.writer.write(data)
        await self.writer.drain()

    async def chunk(self, data: bytes) -> None:
        """One chunk of a chunked body."""
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def drip(self, data: bytes, *, bytes_per_second: float) -> None:
        """Bytes, slowly."""
        step = max(1, int(bytes_per_second / 50))
        for start in range(0, len(data), step):
            await self.raw(data[start : start + step])
            await asyncio.sleep(step / bytes_per_second)

    def reset(self) -> None:
        """Break the connection the hard way."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Behaviour = Callable[[Request, Reply], Awaitable[None]]


@dataclass
class MisbehavingServer:
    """Serves with `behave`, which a test may exchange at any time."""

    behave: Behaviour
    tls: bool = True
    requests: list[Request] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    """What the clients sent as SNI."""

    def url(self, path: str = "/file", *, host: str = "127.0.0.1") -> str:
        """A URL that leads here, if the host does."""
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{path}"

    async def __aenter__(self) -> Self:
        context = _server_context() if self.tls else None
        if context is not None:
            context.sni_callback = lambda _, name, __: self.server_names.append(name)
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=context)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._answer_all(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while not writer.is_closing():
                    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                    body = await reader.readexactly(int(headers.get("content-length", 0)))
                    request = Request(head[0].split()[1], headers, len(self.requests), body)
                    self.requests.append(request)
                    await self.behave(request, Reply(writer))
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


# -- behaviours ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving_in_a_thread(behave: Behaviour) -> Iterator[str]:
    """The URL of a file on such a server without TLS, for tests without an event loop of their own."""
    loop = asyncio.new_event_loop()
    started: Future[str] = Future()
    stop = asyncio.Event()

    async def serve() -> None:
        async with MisbehavingServer(behave, tls=False) as server:
            started.set_result(server.url())
            await stop.wait()

    thread = Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    try:
        yield started.result(60)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def honest(content: bytes, **headers: object) -> Behaviour:
    """The whole or the range that was asked for."""

    async def behave(request: Request, reply: Reply) -> None:
        await _send(request, reply, content, content, headers)

    return behave


async def _send(
    request: Request, reply: Reply, content: bytes, sent: bytes, headers: dict[str, object]
) -> None:
    span = request.span(len(content))
    if span is None:
        await reply.head(200, content_length=len(content), **headers)
        await reply.raw(sent)
    elif span[0] >= len(content):
        await reply.head(416, content_range=f"bytes */{len(content)}", content_length=0)
    else:
        start, end = span
        content_range = f"bytes {start}-{end - 1}/{len(content)}"
        await reply.head(206, content_length=end - start, content_range=content_range, **headers)
        await reply.raw(sent[start:end])


def ignoring_ranges(content: bytes) -> Behaviour:
    """Always the whole, with 200."""

    async def behave(request: Request, reply: Reply) -> None:
        await reply.head(200, content_length=len(content))
        await reply.raw(content)

    return behave


def breaking_after(num_bytes: int, content: bytes, *, reset: bool, num_times: int = 1 << 30) -> Behaviour:
    """Honours ranges, and breaks the connection after so many bytes of each of the first replies."""

    async def behave(request: Request, reply: Reply) -> None:
        start, end = request.span(len(content)) or (0, len(content))
        if request.number >= num_times or end - start <= num_bytes:
            await honest(content)(request, reply)
            return
        content_range = f"bytes {start}-{end - 1}/{len(content)}"
        status, headers = (206, {"content_range": content_range}) if "range" in request.headers else (200, {})
        await reply.head(status, content_length=end - start, **headers)
        await reply.raw(content[start : start + num_bytes])
        await asyncio.sleep(0.02)  # a reset discards what the client has not read yet
        if reset:
            reply.reset()
        reply.writer.close()

    return behave


def redirecting(location: str, then: Behaviour, *, num_times: int = 1, status: int = 302) -> Behaviour:
    """Sends the client elsewhere, so many times."""

    async def behave(request: Request, reply: Reply) -> None:
        if request.number < num_times:
            await reply.head(status, location=location, content_length=0)
        else:
            await then(request, reply)

    return behave


def replying(status: int, body: bytes = b"", **headers: object) -> Behaviour:
    """The same reply to everything."""

    async def behave(request: Request, reply: Reply) -> None:
        await reply.head(status, **({"content_length": len(body)} | headers))
        await reply.raw(body)

    return behave


def closing_after(body: bytes, **headers: object) -> Behaviour:
    """A body whose end is the end of the connection."""

    async def behave(request: Request, reply: Reply) -> None:
        await reply.head(200, connection="close", **headers)
        await reply.raw(body)
        reply.writer.close()

    return behave


def chunked(*chunks: bytes) -> Behaviour:
    """No length, but an end."""

    async def behave(request: Request, reply: Reply) -> None:
        await reply.head(200, transfer_encoding="chunked")
        for chunk in (*chunks, b""):
            await reply.chunk(chunk)

    return behave


async def silent(request: Request, reply: Reply) -> None:
    """Never says anything."""
    await asyncio.sleep(3600)


async def slow_headers(request: Request, reply: Reply) -> None:
    """One byte of the head now and then."""
    await reply.drip(b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 100_000, bytes_per_second=50)


async def interim_flood(request: Request, reply: Reply) -> None:
    """Interim replies without end, as fast as they are taken."""
    while True:
        await reply.raw(b"HTTP/1.1 103 Hints\r\n\r\n" * 1000)


async def endless(request: Request, reply: Reply) -> None:
    """A body without end, in chunks."""
    await reply.head(200, transfer_encoding="chunked")
    while True:
        await reply.chunk(bytes(4096))


def slow_body(content: bytes, *, bytes_per_second: float) -> Behaviour:
    """Honest, and slow."""

    async def behave(request: Request, reply: Reply) -> None:
        start, end = request.span(len(content)) or (0, len(content))
        if "range" in request.headers:
            content_range = f"bytes {start}-{end - 1}/{len(content)}"
            await reply.head(206, content_length=end - start, content_range=content_range)
        else:
            await reply.head(200, content_length=end - start)
        await reply.drip(content[start:end], bytes_per_second=bytes_per_second)

    return behave
