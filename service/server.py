"""Both APIs over one service in one process: from the first socket to the last goodbye."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NoReturn

import structlog
import uvicorn

from service.cancellation import cancel_when
from service.config import Settings, is_loopback
from service.grpc_api.servicer import serve_grpc
from service.http_api.app import create_app
from service.http_api.protocol import BoundedHttpProtocol
from service.lifespan import Components, open_service
from service.log import log_loop_trouble
from service.open_files import connection_limits, raise_open_file_limit
from service.scoring.scheduler import Scheduler
from service.shutdown import Shutdown

KEEP_ALIVE_SECONDS = 30
_LAST_GOODBYES_SECONDS = 5
_ACCEPTED_AT_ONCE = 16
"""Connections that asyncio accepts before it counts them: each has a descriptor, though it may be one too many."""
_WAITING_TO_BE_ACCEPTED = 1024
"""Connections that the system keeps until we accept them."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running service listens."""

    http: str
    grpc: str | None


class _HttpServer(uvicorn.Server):
    """uvicorn, but signals are ours: stopping begins with draining, not with closed sockets."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def abort_connections(self) -> None:
        """To their requests it is as if the clients had left."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def serve(settings: Settings, on_ready: Callable[[Addresses], None]) -> int:
    """Serve until SIGTERM or SIGINT, then drain: running work finishes, or is stopped and told so at the limit.

    A second signal ends running work, and this, at once. Returns the exit code: 0, or 128 and the number of that
    second signal. Raises OSError when an address is taken, and what `open_service` raises.
    """
    shutdown = Shutdown()
    shutdown.listen()
    asyncio.get_running_loop().set_exception_handler(log_loop_trouble)
    async with AsyncExitStack() as stack:
        try:
            parts, addresses = await cancel_when(
                _watch(shutdown.requested), stack.enter_async_context(run_service(settings, shutdown))
            )
        except _StopAsked:
            log.info("stopped before the start had ended")
            return shutdown.exit_code
        gc.collect()
        gc.freeze()  # what is here now stays: a full collection would look at all of it while requests wait
        on_ready(addresses)
        await shutdown.requested.wait()
        await _drain(parts.scheduler, settings.drain_timeout_seconds, shutdown)
    return shutdown.exit_code


async def _drain(scheduler: Scheduler, timeout_seconds: float, shutdown: Shutdown) -> None:
    log.info("draining", admitted=scheduler.num_admitted)
    try:
        drained = await cancel_when(_watch(shutdown.urgent), scheduler.drain(timeout_seconds))
    except _StopAsked:
        log.warning("ending at once")
        drained = False
    if not drained:
        log.warning("work is stopped unfinished", requests=scheduler.num_admitted)
        await scheduler.end_admitted(_LAST_GOODBYES_SECONDS)


class _StopAsked(Exception):
    """A signal has come."""


async def _watch(asked: asyncio.Event) -> NoReturn:
    await asked.wait()
    raise _StopAsked


@asynccontextmanager
async def run_service(
    settings: Settings, shutdown: Shutdown | None = None
) -> AsyncIterator[tuple[Components, Addresses]]:
    """The service with its APIs open for the length of the block."""
    shutdown = shutdown or Shutdown()
    connections = connection_limits(settings, raise_open_file_limit())
    listener = _listen(settings.host, settings.port)
    with listener:
        async with (
            open_service(settings) as parts,
            _http_api(parts, listener, connections.http, shutdown) as http,
        ):
            if settings.is_open_to_all:
                log.warning("HTTP asks for no API key, and listens beyond this machine", address=http)
            if settings.grpc_port == "off":
                yield parts, Addresses(http, None)
                return
            async with serve_grpc(
                parts.scorer,
                host=settings.grpc_listen_host,
                port=settings.grpc_port,
                is_ready=lambda: parts.readiness() == "ready",
                metrics=parts.metrics,
                max_models=settings.max_models,
                max_connections=connections.grpc,
                grace_seconds=_LAST_GOODBYES_SECONDS,
                shutdown=shutdown,
            ) as grpc_port:
                url = _url(settings.grpc_listen_host, grpc_port)
                if not is_loopback(settings.grpc_listen_host):
                    log.warning(
                        "gRPC has no authentication: whoever can reach its address may use it", address=url
                    )
                yield parts, Addresses(http, url)


@asynccontextmanager
async def _http_api(
    parts: Components, listener: socket.socket, max_connections: int, shutdown: Shutdown
) -> AsyncIterator[str]:
    protocol = type("HttpProtocol", (BoundedHttpProtocol,), {"max_connections": max_connections})
    server = _HttpServer(
        uvicorn.Config(
            create_app(parts),
            http=protocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_LAST_GOODBYES_SECONDS,
            backlog=_ACCEPTED_AT_ONCE,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError("the HTTP server ended before it began")
            await asyncio.sleep(0.01)
        listener.listen(_WAITING_TO_BE_ACCEPTED)
        yield _url(*listener.getsockname()[:2])
    finally:
        server.should_exit = True
        async with shutdown.when_urgent(server.abort_connections):
            await serving


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, or asyncio leaves Nagle's algorithm on and every answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        reason = f"HTTP cannot listen on {host} port {port} ({error.strerror})"
        raise OSError(error.errno, f"{reason}: choose others with --host and --port") from error
    return listener


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
