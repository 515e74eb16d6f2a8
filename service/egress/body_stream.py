"""Bodies of known length, read past h11.

httpcore feeds every byte through h11, which copies it three more times: on a fast link that costs as much as
hashing the file. So the head of a reply goes to h11 as ever, cut off exactly where it ends. Where it announces
a plain body of N bytes, h11 is told of an empty one instead, and the N bytes are read from the connection
below. Both then agree on where the reply ends. Whatever is not plain (chunked, contradicting lengths, no length)
goes through h11 untouched.

A connection is used again only where nothing came behind the plain body: what did would be taken for the reply
to the next request, which may be somebody else's. Behind any other body h11 may hold more than can be seen.
"""

# ruff: noqa: ASYNC109  (the signatures are httpcore's)

import contextlib
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Protocol, cast

import h11
import httpcore
import httpx

from service.egress.asyncio_network import AsyncioStream

_READ_BYTES = 1 << 16
_MAX_HEAD_BYTES = 1 << 17  # more than h11 takes
_MAX_INTERIM_HEADS = 16
"""Before the one head that counts. Each costs a pass through h11, and many can come in one packet."""
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/1\.[0-9] 1[0-9][0-9]\b")
_WITH_BODY = re.compile(rb"HTTP/1\.1 20[06]\b")
_LENGTHS = re.compile(rb"^(?:content-length|transfer-encoding)\b.*$", re.IGNORECASE | re.MULTILINE)
_PLAIN_LENGTH = re.compile(rb"content-length:[ \t]*([0-9]{1,18})[ \t]*\r?", re.IGNORECASE)


@contextlib.contextmanager
def transport_errors() -> Iterator[None]:
    """Raise httpx.RemoteProtocolError for what a reply makes h11, httpcore and httpx raise by mistake.

    Any other httpx.TransportError is raised from what the network below has raised.
    """
    try:
        yield
    except httpx.TransportError as error:
        _restore_causes(error)
        raise
    except (ValueError, h11.ProtocolError) as error:
        raise httpx.RemoteProtocolError("the reply makes no sense") from error


def _restore_causes(error: BaseException) -> None:
    """httpcore's pool raises what the network raised `from None`: put back what that was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        if cause.__cause__ is None and isinstance(cause, httpcore.NetworkError | httpcore.TimeoutException):
            cause.__cause__ = cause.__context__
        cause = cause.__cause__


class BodyStream(httpcore.AsyncNetworkStream):
    """A connection that gives httpcore the heads, and the plain bodies to whoever asks for them."""

    def __init__(self, stream: AsyncioStream) -> None:
        self._stream = stream
        self._held = memoryview(b"")
        self._at_head = True
        self._num_interim = 0
        self.body_length: int | None = None
        """Bytes of body that `read_into` gives and httpcore does not see; None: httpcore sees them."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """For httpcore: one head, whole, or else bytes as they come; b"" at the end."""
        if self._at_head:
            return await self._read_head(timeout)
        if self._held:
            held, self._held = bytes(self._held), memoryview(b"")
            return held
        return await self._stream.read(max_bytes, timeout)

    async def read_into(self, buffer: memoryview, timeout: float | None = None) -> int:
        """The number of bytes that have come into the buffer, 0 at the end."""
        if not self._held:
            return await self._stream.read_into(buffer, timeout)
        num_bytes = min(len(buffer), len(self._held))
        buffer[:num_bytes] = self._held[:num_bytes]
        self._held = self._held[num_bytes:]
        return num_bytes

    async def _read_head(self, timeout: float | None) -> bytes:
        came, self._held = bytearray(self._held), memoryview(b"")
        num_searched = 0
        while (end := _END_OF_HEAD.search(came, num_searched)) is None:
            num_searched = max(0, len(came) - 2)  # the end may be there but for its last byte
            more = await self._stream.read(_READ_BYTES, timeout)
            if not more or len(came) > _MAX_HEAD_BYTES:  # h11 says what is wrong with it
                self._at_head = False
                return bytes(came + more)
            came += more
        head, self._held = bytes(came[: end.end()]), memoryview(came)[end.end() :]
        self._at_head = _INTERIM.match(head) is not None
        self._num_interim += self._at_head
        if self._num_interim > _MAX_INTERIM_HEADS:
            raise httpcore.RemoteProtocolError("the reply begins again and again")
        return self._keep_body(head)

    def _keep_body(self, head: bytes) -> bytes:
        lines = list(_LENGTHS.finditer(head))
        length = _PLAIN_LENGTH.fullmatch(lines[0][0]) if len(lines) == 1 else None
        if length is None or not _WITH_BODY.match(head):
            return head
        self.body_length = int(length[1])
        return head[: lines[0].start()] + b"Content-Length: 0\r" + head[lines[0].end() :]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it; what comes next is a head. Raises httpcore.RemoteProtocolError if it came already."""
        if buffer and self._is_spoilt:
            raise httpcore.RemoteProtocolError("a reply came before the request")
        self._at_head, self._num_interim, self.body_length = True, 0, None
        await self._stream.write(buffer, timeout)

    @property
    def _is_spoilt(self) -> bool:
        """Whether the next request would not get a reply of its own."""
        went_through_h11 = not self._at_head and self.body_length is None
        return went_through_h11 or bool(self._held) or self._stream.get_extra_info("is_readable")

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """The same connection, encrypted; the certificate is checked against `server_hostname`."""
        try:
            return BodyStream(await self._stream.start_tls(ssl_context, server_hostname, timeout))
        except BaseException:  # httpcore would leave it open
            await self.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        """What httpcore wants to know of the socket; one that is readable between requests is closed."""
        if info == "is_readable":
            return self._is_spoilt
        return self._stream.get_extra_info(info)


class Body(Protocol):
    """The rest of a reply."""

    async def read_into(self, buffer: memoryview) -> int:
        """The number of bytes that have come into the buffer, 0 at the end. Raises httpx.TransportError."""


class PlainBody(httpx.AsyncByteStream):
    """The body of one reply, read from the connection below httpcore."""

    def __init__(self, connection: BodyStream, empty: httpx.AsyncByteStream, timeout: float | None) -> None:
        self._connection = connection
        self._empty = empty
        self._timeout = timeout
        self._num_left = connection.body_length or 0

    async def read_into(self, buffer: memoryview) -> int:
        """See Body."""
        if self._num_left == 0:
            async for _ in self._empty:  # for httpcore the reply has ended too: the connection is free again
                pass
            return 0
        try:
            num_bytes = await self._connection.read_into(buffer[: self._num_left], self._timeout)
        except httpcore.TimeoutException as error:
            raise httpx.ReadTimeout("the connection is silent") from error
        except httpcore.NetworkError as error:
            raise httpx.ReadError("the connection broke") from error
        if num_bytes == 0:
            raise httpx.RemoteProtocolError("the connection was closed in the middle of a body")
        self._num_left -= num_bytes
        return num_bytes

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks as they come."""
        buffer = bytearray(_READ_BYTES)
        while num_bytes := await self.read_into(memoryview(buffer)):
            yield bytes(buffer[:num_bytes])

    async def aclose(self) -> None:
        """Close the connection too, unless the body has been read to its end."""
        await self._empty.aclose()


class _OtherBody:
    """A body that h11 takes apart."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._held = memoryview(b"")

    async def read_into(self, buffer: memoryview) -> int:
        """See Body."""
        while not self._held:
            try:
                with transport_errors():
                    self._held = memoryview(await anext(self._chunks))
            except StopAsyncIteration:
                return 0
        num_bytes = min(len(buffer), len(self._held))
        buffer[:num_bytes] = self._held[:num_bytes]
        self._held = self._held[num_bytes:]
        return num_bytes


@contextlib.asynccontextmanager
async def body_of(response: httpx.Response) -> AsyncIterator[Body]:
    """The body of a response, undecoded."""
    if isinstance(response.stream, PlainBody):
        yield response.stream
        return
    chunks = cast(AsyncGenerator[bytes, None], response.aiter_raw())
    async with contextlib.aclosing(chunks):
        yield _OtherBody(chunks)


def with_plain_body(response: httpx.Response, timeout: float | None) -> httpx.Response:
    """The response with its body, if httpcore was not shown it; else as it is."""
    connection = response.extensions.get("network_stream")
    if not isinstance(connection, BodyStream) or connection.body_length is None:
        return response
    assert isinstance(response.stream, httpx.AsyncByteStream)
    headers = httpx.Headers(response.headers)
    headers["content-length"] = str(connection.body_length)
    body = PlainBody(connection, response.stream, timeout)
    return httpx.Response(response.status_code, headers=headers, stream=body, extensions=response.extensions)
