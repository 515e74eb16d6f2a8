"""Bodies of known length, read past h11.

httpcore feeds every byte through h11, which copies it three more times: on a fast link that costs as much as
hashing the file. So the head of a reply goes to h11 as ever, cut off exactly where it ends. Where it announces
a plain body of N bytes, h11 is told of an empty one instead, and the N bytes are read from the connection
below. Both then agree on where the next reply begins, and the connection can be used again. Whatever is not
plain (chunked, contradicting lengths, no length) goes through h11 untouched.
"""

# ruff: noqa: ASYNC109  (the signatures are httpcore's)

import re
import ssl
from collections.abc import AsyncIterator
from typing import Any

import httpcore
import httpx

_READ_BYTES = 1 << 18
_MAX_HEAD_BYTES = 1 << 17  # more than h11 takes
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_INTERIM = re.compile(rb"HTTP/1\.[0-9] 1[0-9][0-9]\b")
_WITH_BODY = re.compile(rb"HTTP/1\.1 20[06]\b")
_LENGTHS = re.compile(rb"^(?:content-length|transfer-encoding)\b.*$", re.IGNORECASE | re.MULTILINE)
_PLAIN_LENGTH = re.compile(rb"content-length:[ \t]*([0-9]{1,18})[ \t]*\r?", re.IGNORECASE)


class BodyStream(httpcore.AsyncNetworkStream):
    """A connection that gives httpcore the heads, and the plain bodies to whoever asks for them."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream
        self._held = b""
        self._at_head = True
        self.body_length: int | None = None
        """Bytes of body that `read_body` gives and httpcore does not see; None: httpcore sees them."""

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """For httpcore: one head, whole, or else bytes as they come; b"" at the end."""
        return await (self._read_head(timeout) if self._at_head else self.read_body(max_bytes, timeout))

    async def read_body(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most `max_bytes` as they come; b"" at the end."""
        if self._held:
            chunk, self._held = self._held[:max_bytes], self._held[max_bytes:]
            return chunk
        return await self._stream.read(min(max_bytes, _READ_BYTES), timeout)

    async def _read_head(self, timeout: float | None) -> bytes:
        head, self._held = self._held, b""
        while (end := _END_OF_HEAD.search(head)) is None:
            more = await self._stream.read(_READ_BYTES, timeout)
            if not more or len(head) > _MAX_HEAD_BYTES:  # h11 says what is wrong with it
                self._at_head = False
                return head + more
            head += more
        head, self._held = head[: end.end()], head[end.end() :]
        self._at_head = _INTERIM.match(head) is not None
        return self._keep_body(head)

    def _keep_body(self, head: bytes) -> bytes:
        lines = list(_LENGTHS.finditer(head))
        length = _PLAIN_LENGTH.fullmatch(lines[0][0]) if len(lines) == 1 else None
        if length is None or not _WITH_BODY.match(head):
            return head
        self.body_length = int(length[1])
        return head[: lines[0].start()] + b"Content-Length: 0\r" + head[lines[0].end() :]

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it; what comes next is a head."""
        self._at_head, self.body_length = True, None
        await self._stream.write(buffer, timeout)

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
        """What httpcore wants to know of the socket."""
        return self._stream.get_extra_info(info)


class PlainBody(httpx.AsyncByteStream):
    """The body of one reply, read from the connection below httpcore."""

    def __init__(self, connection: BodyStream, empty: httpx.AsyncByteStream, timeout: float | None) -> None:
        self._connection = connection
        self._empty = empty
        self._timeout = timeout

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The chunks as they come. Raises httpx.TransportError where the body breaks off."""
        left = self._connection.body_length or 0
        while left:
            chunk = await self._read(left)
            left -= len(chunk)
            yield chunk
        async for _ in self._empty:  # for httpcore the reply has ended too: the connection is free again
            pass

    async def _read(self, max_bytes: int) -> bytes:
        try:
            chunk = await self._connection.read_body(max_bytes, self._timeout)
        except httpcore.TimeoutException:
            raise httpx.ReadTimeout("the connection is silent") from None
        except httpcore.NetworkError:
            raise httpx.ReadError("the connection broke") from None
        if not chunk:
            raise httpx.RemoteProtocolError("the connection was closed in the middle of a body")
        return chunk

    async def aclose(self) -> None:
        """Close the connection too, unless the body has been read to its end."""
        await self._empty.aclose()


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
