"""A network backend for httpcore on asyncio itself: received bytes go straight into the caller's buffer.

httpcore's own backend reads a TLS connection record by record through anyio, for more than twice the processor time
per byte: see docs/decisions/0010-bodies-past-h11.md.
"""

# ruff: noqa: ASYNC109  (the signatures are httpcore's)

import asyncio
import ssl
from collections.abc import Iterable
from typing import Any, cast

import httpcore

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]

_SCRATCH_BYTES = 1 << 16
_MAX_BUFFERED_BYTES = 1 << 18


class HandshakeFailed(httpcore.ConnectError):
    """The TCP connection was made, and the TLS handshake failed."""


class HandshakeTimeout(httpcore.ConnectTimeout):
    """The TCP connection was made, and the TLS handshake did not end in time."""


class AsyncioNetwork(httpcore.AsyncNetworkBackend):
    """Connects from the running event loop."""

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> "AsyncioStream":
        """A connection. Raises httpcore.ConnectError, httpcore.ConnectTimeout."""
        local = None if local_address is None else (local_address, 0)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                _, receiver = await loop.create_connection(_Receiver, host, port, local_addr=local)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("no connection in time") from error
        except PermissionError:
            # This machine's firewall forbids the port or address, which the URL's owner chose: not our failure.
            raise httpcore.ConnectError("the connection is not permitted") from None
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
        """At most `max_bytes` as they are received; b"" at the end. Raises httpcore.ReadError, httpcore.ReadTimeout."""
        buffer = bytearray(min(max_bytes, _SCRATCH_BYTES))
        num_bytes = await self.read_into(memoryview(buffer), timeout)
        return bytes(buffer[:num_bytes])

    async def read_into(self, buffer: memoryview, timeout: float | None = None) -> int:
        """Receive into the buffer; the number of bytes, 0 at the end. Raises like `read`."""
        try:
            async with asyncio.timeout(timeout):
                return await self._receiver.receive_into(buffer)
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
            raise httpcore.WriteTimeout("the connection accepts no data") from error
        except OSError as error:
            raise httpcore.WriteError("the connection broke") from error

    async def aclose(self) -> None:
        """Close at once, without a TLS shutdown that the other side may delay."""
        self._receiver.transport.abort()
        await asyncio.sleep(0)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> "AsyncioStream":
        """The same connection, encrypted. Raises HandshakeFailed, HandshakeTimeout."""
        try:
            async with asyncio.timeout(timeout):
                await self._receiver.start_tls(ssl_context, server_hostname)
        except TimeoutError as error:
            raise HandshakeTimeout("no handshake in time") from error
        except (OSError, ValueError) as error:  # a certificate or a name that does not fit
            raise HandshakeFailed("no handshake") from error
        return self

    def get_extra_info(self, info: str) -> Any:
        """What httpcore asks for: whether an idle connection is still usable, and the TLS object."""
        if info == "is_readable":
            return self._receiver.has_buffered_data
        names = {"client_addr": "sockname", "server_addr": "peername"}
        return self._receiver.transport.get_extra_info(names.get(info, info))


class _Receiver(asyncio.BufferedProtocol):
    """Receives into the caller's buffer. Without a caller it buffers a little, then stops reading."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self._target: memoryview | None = None
        self._num_in_target = 0
        self._scratch = memoryview(bytearray(_SCRATCH_BYTES))
        self._buffered = bytearray()
        self._is_paused = False
        self._is_lost = False
        self._error: Exception | None = None
        self._changed = asyncio.Event()
        self._may_write = asyncio.Event()
        self._may_write.set()

    @property
    def has_buffered_data(self) -> bool:
        """Whether `receive_into` would return at once."""
        return bool(self._buffered) or self._is_lost

    async def receive_into(self, buffer: memoryview) -> int:
        """The number of bytes received into the buffer, 0 at the end. Raises OSError if the connection broke."""
        if self._buffered:
            return self._take_buffered(buffer)
        if self._is_lost:
            return self._end()
        self._target, self._num_in_target = buffer, 0
        self._changed.clear()
        try:
            await self._changed.wait()
            return self._num_in_target or self._end()
        finally:
            self._target = None

    def _take_buffered(self, buffer: memoryview) -> int:
        num_bytes = min(len(buffer), len(self._buffered))
        buffer[:num_bytes] = self._buffered[:num_bytes]
        del self._buffered[:num_bytes]
        if self._is_paused and not self._buffered:
            self._is_paused = False
            self.transport.resume_reading()
        return num_bytes

    def _end(self) -> int:
        if self._error is not None:
            raise OSError("the connection broke") from self._error
        return 0

    async def send(self, buffer: bytes) -> None:
        """Send, waiting while the connection is congested. Raises OSError if it is lost."""
        if self._is_lost:
            raise OSError("the connection is lost") from self._error
        self.transport.write(buffer)
        await self._may_write.wait()

    async def start_tls(self, context: ssl.SSLContext, server_hostname: str | None) -> None:
        """Encrypt. Raises OSError."""
        if self.has_buffered_data:  # received unencrypted, it must never be taken for a reply
            raise OSError("the server sent data before the TLS handshake")
        encrypted = await asyncio.get_running_loop().start_tls(
            self.transport, self, context, server_hostname=server_hostname
        )
        if encrypted is None:
            raise OSError("the connection was lost in the handshake")
        self.transport = encrypted

    # -- called by asyncio -------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        target = self._target
        if target is not None and self._num_in_target < len(target):
            return target[self._num_in_target :]
        return self._scratch

    def buffer_updated(self, nbytes: int) -> None:
        if self._target is not None and self._num_in_target < len(self._target):
            self._num_in_target += nbytes
        else:
            self._buffered += self._scratch[:nbytes]
            if len(self._buffered) >= _MAX_BUFFERED_BYTES and not self._is_paused:
                self._is_paused = True
                self.transport.pause_reading()
        self._changed.set()

    def connection_lost(self, error: Exception | None) -> None:
        self._error = error
        self._is_lost = True
        self._changed.set()
        self._may_write.set()

    def pause_writing(self) -> None:
        self._may_write.clear()

    def resume_writing(self) -> None:
        self._may_write.set()
