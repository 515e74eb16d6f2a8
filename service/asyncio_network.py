"""httpcore's view of a network, over asyncio itself.

The one that comes with httpcore reads a TLS connection record by record through anyio, which takes more than
twice the processor time for each byte. Here asyncio decrypts and hands over what there is.
"""

# ruff: noqa: ASYNC109  (the signatures are httpcore's)

import asyncio
import ssl
from collections import deque
from collections.abc import Iterable
from typing import Any, cast

import httpcore

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

_PAUSE_ABOVE_BYTES = 2 << 20
_RESUME_BELOW_BYTES = 1 << 20


class AsyncioNetwork(httpcore.AsyncNetworkBackend):
    """Dials from the running event loop."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """A connection. Raises httpcore.ConnectError, httpcore.ConnectTimeout."""
        local = None if local_address is None else (local_address, 0)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, receiver = await loop.create_connection(_Receiver, host, port, local_addr=local)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("no connection in time") from error
        except OSError as error:
            raise httpcore.ConnectError("no connection") from error
        for option in socket_options or ():
            receiver.transport.get_extra_info("socket").setsockopt(*option)
        return AsyncioStream(receiver)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise httpcore.ConnectError("unix sockets are not dialled")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await asyncio.sleep(seconds)


class AsyncioStream(httpcore.AsyncNetworkStream):
    """One connection, plain or encrypted."""

    def __init__(self, receiver: "_Receiver") -> None:
        self._receiver = receiver

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """At most `max_bytes` as they come; b"" at the end. Raises httpcore.ReadError, httpcore.ReadTimeout."""
        try:
            async with asyncio.timeout(timeout):
                return await self._receiver.take(max_bytes)
        except TimeoutError as error:
            raise httpcore.ReadTimeout("the connection is silent") from error
        except OSError as error:
            raise httpcore.ReadError("the connection broke") from error

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of it. Raises httpcore.WriteError, httpcore.WriteTimeout."""
        try:
            async with asyncio.timeout(timeout):
                await self._receiver.send(buffer)
        except TimeoutError as error:
            raise httpcore.WriteTimeout("the connection takes nothing") from error
        except OSError as error:
            raise httpcore.WriteError("the connection broke") from error

    async def aclose(self) -> None:
        """Close at once, without a farewell that the other side may delay."""
        self._receiver.transport.abort()
        await asyncio.sleep(0)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """The same connection, encrypted. Raises httpcore.ConnectError, httpcore.ConnectTimeout."""
        try:
            async with asyncio.timeout(timeout):
                await self._receiver.start_tls(ssl_context, server_hostname)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("no handshake in time") from error
        except OSError as error:  # certificates that do not fit are among them
            raise httpcore.ConnectError("no handshake") from error
        return self

    def get_extra_info(self, info: str) -> Any:
        """What httpcore wants to know: whether an idle connection is still good, and which protocol it speaks."""
        if info == "is_readable":
            return self._receiver.has_news
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._receiver.transport.get_extra_info(names.get(info, info))


class _Receiver(asyncio.Protocol):
    """Holds what has come until it is taken, and lets the sender wait meanwhile."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._chunks: deque[bytes] = deque()
        self._num_bytes = 0
        self._is_paused = False
        self._is_lost = False
        self._error: Exception | None = None
        self._news = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def has_news(self) -> bool:
        """Whether `take` would return at once."""
        return bool(self._chunks) or self._is_lost

    async def take(self, max_bytes: int) -> bytes:
        """What has come, oldest first; b"" at the end. Raises OSError if the end was none."""
        while not self.has_news:
            self._news.clear()
            await self._news.wait()
        if not self._chunks:
            if self._error is not None:
                raise OSError("the connection broke") from self._error
            return b""
        chunk = self._chunks.popleft()
        if len(chunk) > max_bytes:
            self._chunks.appendleft(chunk[max_bytes:])
            chunk = chunk[:max_bytes]
        self._num_bytes -= len(chunk)
        if self._is_paused and self._num_bytes < _RESUME_BELOW_BYTES:
            self._is_paused = False
            self.transport.resume_reading()
        return chunk

    async def send(self, buffer: bytes) -> None:
        """Hand over to the connection, and wait while it is congested. Raises OSError if it is lost."""
        if self._is_lost:
            raise OSError("the connection is lost") from self._error
        self.transport.write(buffer)
        await self._may_write.wait()

    async def start_tls(self, context: ssl.SSLContext, server_hostname: str | None) -> None:
        """Encrypt. Raises OSError."""
        if self.has_news:  # what came unencrypted must never be taken for what came after the handshake
            raise OSError("the server spoke before its turn")
        encrypted = await asyncio.get_running_loop().start_tls(
            self.transport, self, context, server_hostname=server_hostname
        )
        if encrypted is None:
            raise OSError("the connection was lost in the handshake")
        self.transport = encrypted

    # -- called by asyncio -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._chunks.append(data)
        self._num_bytes += len(data)
        self._news.set()
        if self._num_bytes > _PAUSE_ABOVE_BYTES and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._error = error
        self._is_lost = True
        self._news.set()
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()
