"""Bodies of known length are read from the connection directly, not through h11.

httpcore passes every byte through h11, which copies it three more times: on a fast link that costs as much as hashing
the file (see docs/decisions/0010-bodies-past-h11.md). So h11 parses the head of a reply as usual, cut off exactly where
the head ends. If the head announces a plain body of N bytes, h11 is given a Content-Length of 0 instead, and the N
bytes are read from the connection below. Both then agree on where the reply ends. Every other body (chunked,
contradicting lengths, no length) goes through h11 unchanged.

A connection is reused only if nothing was received after the plain body: it would be taken for the reply to the next
request, which may be to another file. After any other body it is closed, as h11 may have buffered more than is seen.
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
    """Raise httpx.RemoteProtocolError for what h11, httpcore and httpx raise by mistake because of a reply.

    Any other httpx.TransportError is raised from what the network below has raised.
    """
    try:
        yield
    except httpx.TransportError as error:
        _restore_causes(error)
        raise
    except (ValueError, h11.ProtocolError) as error:
        raise httpx.RemoteProtocolError("the reply is malformed") from error


def _restore_causes(error: BaseException) -> None:
    """httpcore's pool raises the network's errors `from None`: restore what they were raised from."""
    cause: BaseException | None = error
    while cause is not None:
        if cause.__cause__ is None and isinstance(cause, httpcore.NetworkError | httpcore.TimeoutException):
            cause.__cause__ = cause.__context__
        cause = cause.__cause__


class BodyStream(httpcore.AsyncNetworkStream):
    """A connection from which httpcore reads the heads, and `PlainBody` the plain bodies."""

    def __init__(self, stream: AsyncioStream) -> None:
        self._stream = stream
        self._unread = memoryview(b"")
        self._expects_head = True
        self._num_interim = 0
        self.body_length: int | None = None
        """Length of the body that `read_into` reads and httpcore does not see; None: httpcore sees it."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """For httpcore: one whole head, or else bytes as they are received; b"" at the end."""
        if self._expects_head:
            return await self._read_head(timeout)
        if self._unread:
            unread, self._unread = bytes(self._unread), memoryview(b"")
            return unread
        return await self._stream.read(max_bytes, timeout)

    async def read_into(self, buffer: memoryview, timeout: float | None = None) -> int:
        """Receive into the buffer; the number of bytes, 0 at the end."""
        if not self._unread:
            return await self._stream.read_into(buffer, timeout)
        num_bytes, self._unread = _copy_into(buffer, self._unread)
        return num_bytes

    async def _read_head(self, timeout: float | None) -> bytes:
        received, self._unread = bytearray(self._unread), memoryview(b"")
        num_searched = 0
        while (end := _END_OF_HEAD.search(received, num_searched)) is None:
            num_searched = max(0, len(received) - 2)  # the end may lack only its last byte
            more = await self._stream.read(_READ_BYTES, timeout)
            if not more or len(received) > _MAX_HEAD_BYTES:  # h11 will refuse it
                self._expects_head = False
                return bytes(received + more)
            received += more
        head, self._unread = bytes(received[: end.end()]), memoryview(received)[end.end() :]
        self._expects_head = _INTERIM.match(head) is not None
        self._num_interim += self._expects_head
        if self._num_interim > _MAX_INTERIM_HEADS:
            raise httpcore.RemoteProtocolError("the reply has too many interim heads")
        return self._keep_body(head)

    def _keep_body(self, head: bytes) -> bytes:
        lines = list(_LENGTHS.finditer(head))
        length = _PLAIN_LENGTH.fullmatch(lines[0][0]) if len(lines) == 1 else None
        if length is None or not _WITH_BODY.match(head):
            return head
        self.body_length = int(length[1])
        return head[: lines[0].start()] + b"Content-Length: 0\r" + head[lines[0].end() :]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send a request. Raises httpcore.RemoteProtocolError if data has been received before it."""
        if buffer and self._has_unread_data:
            raise httpcore.RemoteProtocolError("the server sent data before the request")
        self._expects_head, self._num_interim, self.body_length = True, 0, None
        await self._stream.write(buffer, timeout)

    @property
    def _has_unread_data(self) -> bool:
        """Whether something may be left that would be taken for the reply to the next request."""
        went_through_h11 = not self._expects_head and self.body_length is None
        return went_through_h11 or bool(self._unread) or self._stream.get_extra_info("is_readable")

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
        """See AsyncioStream. httpcore closes a connection that is readable between requests."""
        if info == "is_readable":
            return self._has_unread_data
        return self._stream.get_extra_info(info)


class Body(Protocol):
    """The rest of a reply."""

    async def read_into(self, buffer: memoryview) -> int:
        """Receive into the buffer; the number of bytes, 0 at the end. Raises httpx.TransportError."""


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
            async for _ in self._empty:  # httpcore sees the end of the reply, and may reuse the connection
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
        """The bytes as they are received."""
        buffer = bytearray(_READ_BYTES)
        while num_bytes := await self.read_into(memoryview(buffer)):
            yield bytes(buffer[:num_bytes])

    async def aclose(self) -> None:
        """Close the connection too, unless the body has been read to its end."""
        await self._empty.aclose()


class _OtherBody:
    """A body that is read through h11."""

    def __init__(self, chunks: AsyncIterator[bytes]) -> None:
        self._chunks = chunks
        self._unread = memoryview(b"")

    async def read_into(self, buffer: memoryview) -> int:
        """See Body."""
        while not self._unread:
            try:
                with transport_errors():
                    self._unread = memoryview(await anext(self._chunks))
            except StopAsyncIteration:
                return 0
        num_bytes, self._unread = _copy_into(buffer, self._unread)
        return num_bytes


def _copy_into(buffer: memoryview, data: memoryview) -> tuple[int, memoryview]:
    """Copy as much as fits; the number of bytes, and the rest of the data."""
    num_bytes = min(len(buffer), len(data))
    buffer[:num_bytes] = data[:num_bytes]
    return num_bytes, data[num_bytes:]


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
    """The response with the body that httpcore does not see, if there is one; else unchanged."""
    connection = response.extensions.get("network_stream")
    if not isinstance(connection, BodyStream) or connection.body_length is None:
        return response
    assert isinstance(response.stream, httpx.AsyncByteStream)
    headers = httpx.Headers(response.headers)
    headers["content-length"] = str(connection.body_length)
    body = PlainBody(connection, response.stream, timeout)
    return httpx.Response(response.status_code, headers=headers, stream=body, extensions=response.extensions)
