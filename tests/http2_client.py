"""HTTP/2 frames written by hand: what a hostile gRPC client sends, and a real one never does."""

import contextlib
import socket
import struct

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4


class Http2Client:
    """One connection to a gRPC server, its preface and settings sent."""

    def __init__(self, port: int, timeout_seconds: float = 60.0) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout_seconds)
        self._socket.sendall(_PREFACE + _frame(_SETTINGS, 0, 0) + _frame(_SETTINGS, _ACK, 0))

    def close(self) -> None:
        """Close the connection without a GOAWAY frame."""
        self._socket.close()

    def send(self, frames: bytes) -> None:
        """Send frames. Raises OSError when the server has closed the connection."""
        self._socket.sendall(frames)

    def wait_until_closed(self, timeout_seconds: float) -> None:
        """Read until the server closes the connection. Raises TimeoutError when it does not."""
        self._socket.settimeout(timeout_seconds)
        with contextlib.suppress(ConnectionError):
            while self._socket.recv(1 << 16):
                pass

    def receive_resets(self, count: int) -> list[int]:
        """Wait until the server has reset this many streams; returns their numbers. Raises TimeoutError."""
        streams: list[int] = []
        while len(streams) < count:
            head = self._receive(9)
            self._receive(int.from_bytes(head[:3], "big"))
            if head[3] == _RESET:
                streams.append(int.from_bytes(head[5:], "big"))
        return streams

    def _receive(self, size: int) -> bytes:
        return self._socket.recv(size, socket.MSG_WAITALL) if size else b""


def headers(stream: int, *, path: str = "/scoring.Scoring/Score", end: bool = False) -> bytes:
    """The HEADERS frame of a call, not compressed. Client streams have odd numbers, each larger than the last."""
    block = (
        b"\x83\x86"  # POST, http
        + b"\x04"
        + _text(path)
        + b"\x01"
        + _text("localhost")
        + b"\x00"
        + _text("content-type")
        + _text("application/grpc")
        + b"\x00"
        + _text("te")
        + _text("trailers")
    )
    return _frame(_HEADERS, _END_HEADERS | (_END_STREAM if end else 0), stream, block)


def data(stream: int, content: bytes) -> bytes:
    """A DATA frame with a part of the message."""
    return _frame(_DATA, 0, stream, content)


def _text(text: str) -> bytes:
    return bytes([len(text)]) + text.encode()


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload
