"""The address guard: resolve a name once, check every address, connect to a checked address.

It works below HTTP, where connections are made, so that nothing above can get around it: no redirect, no second
look-up with another answer, no URL that two parsers read differently. TLS is negotiated above with the name from
the URL, so SNI, the Host header and the certificate check use the name.
"""

# ruff: noqa: ASYNC109  (the signatures are httpcore's)

import asyncio
import ssl
from collections.abc import Iterable, Sequence

import httpcore
import httpx

from service.egress.asyncio_network import AsyncioNetwork, SocketOption
from service.egress.body_stream import BodyStream, transport_errors, with_plain_body
from service.egress.resolver import Resolver
from service.egress.url_policy import ForbiddenTarget, UrlPolicy
from service.errors import exhaustion_of

_MAX_ADDRESSES_DIALLED = 6
_MAX_SECONDS_PER_ADDRESS = 4.0


class GuardedNetwork(httpcore.AsyncNetworkBackend):
    """An httpcore network that connects to no address that the policy forbids.

    One forbidden address among a name's addresses forbids the name. `connect_tcp` then raises ForbiddenTarget
    before a packet is sent.
    """

    def __init__(self, policy: UrlPolicy, resolver: Resolver, network: AsyncioNetwork | None = None) -> None:
        self._policy = policy
        self._resolver = resolver
        self._network = network or AsyncioNetwork()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first allowed address that accepts, within `timeout` seconds in all."""
        options = None if socket_options is None else list(socket_options)
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._allowed_addresses(host, port)
                return await self._dial(addresses, port, local_address, options)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout("no connection in time") from error

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[SocketOption] | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Never."""
        raise ForbiddenTarget("unix sockets are not dialled")

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await self._network.sleep(seconds)

    async def _allowed_addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            addresses = await self._resolver(host, port)
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and exhaustion_of(error) is None:
                raise
            raise httpcore.ConnectError("the host's name has no address") from error
        if not addresses:
            raise httpcore.ConnectError("the host's name has no address")
        if not all(self._policy.may_dial(address) for address in addresses):
            raise ForbiddenTarget("the host has an address that is not public")
        return addresses[:_MAX_ADDRESSES_DIALLED]

    async def _dial(
        self,
        addresses: Sequence[str],
        port: int,
        local_address: str | None,
        options: list[SocketOption] | None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError("the host has no address")
        for address in addresses:
            try:
                stream = await self._network.connect_tcp(
                    address, port, _MAX_SECONDS_PER_ADDRESS, local_address, options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
                if exhaustion_of(error) is not None:
                    break
            else:
                return BodyStream(stream)
        raise failure


class GuardedTransport(httpx.AsyncHTTPTransport):
    """httpx's transport over connections to allowed addresses only; no proxy, nothing from the environment.

    Raises ForbiddenTarget for a forbidden address, httpx.TransportError for every other failure.
    """

    def __init__(
        self,
        policy: UrlPolicy,
        resolver: Resolver,
        ssl_context: ssl.SSLContext,
        network: AsyncioNetwork | None = None,
    ) -> None:
        super().__init__(verify=ssl_context, trust_env=False)
        # httpx has no public way to set the pool. In a version that keeps it elsewhere, nothing would be guarded.
        if not isinstance(getattr(self, "_pool", None), httpcore.AsyncConnectionPool):
            raise RuntimeError("this version of httpx keeps its connection pool elsewhere")
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=None,
            max_keepalive_connections=16,
            keepalive_expiry=5.0,
            network_backend=GuardedNetwork(policy, resolver, network),
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request; the response, its body not yet read."""
        with transport_errors():
            response = await super().handle_async_request(request)
        return with_plain_body(response, request.extensions.get("timeout", {}).get("read"))
