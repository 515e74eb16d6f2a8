"""Bare connections, for what no HTTP client would send, and waiting for a condition."""

import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit


def connect(url: str, timeout_seconds: float = 60.0) -> socket.socket:
    """A connection to the host and port of a URL."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    return socket.create_connection((parts.hostname, parts.port), timeout=timeout_seconds)


def read_to_the_end(connection: socket.socket) -> bytes:
    """What the server sends until it closes; a reset is an end too."""
    received = b""
    try:
        while block := connection.recv(1 << 16):
            received += block
    except ConnectionError:
        pass
    return received


def wait_until(condition: Callable[[], bool], timeout_seconds: float = 60.0) -> None:
    """Check again and again; fails at the timeout."""
    end = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
