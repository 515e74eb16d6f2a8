"""HTTP/1.1 from the socket: uvicorn's fast parser, with the bound on heads and trailers that it lacks."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 512 << 10
"""What a request may bring beside its body: far above what any client sends, and above what one read brings
(256 KiB), for the next request's bytes may come along in it."""

_MAX_BYTES_PER_BODY_BYTE = 8
"""A body sent in chunks of one byte takes six for each."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. It is cut off when a request brings more head, framing and trailers than it may."""

    _allowance = MAX_HEAD_BYTES

    def data_received(self, data: bytes) -> None:
        """More bytes from the client."""
        super().data_received(data)
        self._allowance -= len(data)
        if self._allowance < 0:
            self.transport.abort()

    def on_body(self, body: bytes) -> None:
        """Bytes of the body, which are bounded elsewhere."""
        self._allowance += _MAX_BYTES_PER_BODY_BYTE * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has ended; another may follow."""
        self._allowance = MAX_HEAD_BYTES
        super().on_message_complete()
