"""Runs both APIs over one service in one process, from start to shutdown."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn

import structlog
import uvicorn

from service.cancellation import cancel_when
from service.config import Settings, is_loopback
from service.grpc_api.servicer import serve_grpc
from service.http_api.app import create_app
from service.http_api.protocol import BoundedHttpProtocol, HttpLimits
from service.lifespan import Components, open_service
from service.log import log_loop_error
from service.open_files import connection_limits, raise_open_file_limit
from service.scoring.scheduler import Scheduler
from service.shutdown import Shutdown
from workers.pool import WorkerPool

KEEP_ALIVE_SECONDS = 30
_CLOSE_SECONDS = 5
"""For responses and connections that are left when the drain has ended."""
_ACCEPT_BATCH = 16
"""Connections that asyncio accepts in one go, each with a descriptor, before they are counted."""
_BACKLOG = 1024
"""Connections that the system holds until they are accepted."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where a running service listens."""

    http: str
    grpc: str | None


class _HttpServer(uvicorn.Server):
    """uvicorn without its signal handlers: a shutdown begins with draining, not with closed sockets."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def abort_connections(self) -> None:
        """Their requests end as if the clients had disconnected."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


async def serve(settings: Settings, on_ready: Callable[[Addresses], None]) -> int:
    """Serve until SIGTERM or SIGINT, then drain: running work finishes, or is cancelled at the timeout.

    A second signal cancels running work at once. Returns the exit code: 0, or 128 plus the number of the second signal.
    Raises OSError when an address is taken, and what `open_service` raises.
    """
    shutdown = Shutdown()
    shutdown.listen()
    asyncio.get_running_loop().set_exception_handler(log_loop_error)
    async with AsyncExitStack() as stack:
        try:
            components, addresses = await cancel_when(
                _watch(shutdown.requested), stack.enter_async_context(run_service(settings, shutdown))
            )
        except _StopRequested:
            log.info("stopped during the start")
            return shutdown.exit_code
        gc.collect()
        gc.freeze()  # what exists now stays, and a full collection would traverse it while requests wait
        on_ready(addresses)
        await shutdown.requested.wait()
        await _drain(components.scheduler, settings.drain_timeout_seconds, shutdown)
    return shutdown.exit_code


async def _drain(scheduler: Scheduler, timeout_seconds: float, shutdown: Shutdown) -> None:
    log.info("draining", admitted=scheduler.num_admitted)
    try:
        drained = await cancel_when(_watch(shutdown.urgent), scheduler.drain(timeout_seconds))
    except _StopRequested:
        log.warning("cancelling running work")
        drained = False
    if not drained:
        log.warning("running work is cancelled", requests=scheduler.num_admitted)
        await scheduler.end_admitted(_CLOSE_SECONDS)


class _StopRequested(Exception):
    """A signal was received."""


async def _watch(requested: asyncio.Event) -> NoReturn:
    await requested.wait()
    raise _StopRequested


@asynccontextmanager
async def run_service(
    settings: Settings,
    shutdown: Shutdown | None = None,
    *,
    pool: WorkerPool | None = None,
    http_limits: HttpLimits | None = None,
) -> AsyncIterator[tuple[Components, Addresses]]:
    """The service with its APIs open for the length of the block.

    `pool`: see `open_service`. `http_limits`: the connections that this process may open are a limit as well.
    """
    shutdown = shutdown or Shutdown()
    connections = connection_limits(settings, raise_open_file_limit())
    limits = http_limits or HttpLimits()
    limits = replace(limits, max_connections=min(limits.max_connections, connections.http))
    listener = _listen(settings.host, settings.port)
    with listener:
        async with (
            open_service(settings, pool) as components,
            _http_api(components, listener, limits, shutdown) as http,
        ):
            if settings.is_open_to_all:
                log.warning("HTTP asks for no API key, and listens beyond this machine", address=http)
            if settings.grpc_port == "off":
                yield components, Addresses(http, None)
                return
            async with serve_grpc(
                components.scorer,
                host=settings.grpc_listen_host,
                port=settings.grpc_port,
                is_ready=lambda: components.readiness() == "ready",
                metrics=components.metrics,
                max_models=settings.max_models,
                max_connections=connections.grpc,
                grace_seconds=_CLOSE_SECONDS,
                shutdown=shutdown,
            ) as grpc_port:
                url = _url(settings.grpc_listen_host, grpc_port)
                if not is_loopback(settings.grpc_listen_host):
                    log.warning(
                        "gRPC has no authentication: whoever can reach its address may use it", address=url
                    )
                yield components, Addresses(http, url)


@asynccontextmanager
async def _http_api(
    components: Components, listener: socket.socket, limits: HttpLimits, shutdown: Shutdown
) -> AsyncIterator[str]:
    server = _HttpServer(
        uvicorn.Config(
            create_app(components),
            http=partial(BoundedHttpProtocol, limits),  # type: ignore[arg-type]  # uvicorn only calls it
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
            backlog=_ACCEPT_BATCH,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError("the HTTP server did not start")
            await asyncio.sleep(0.01)
        listener.listen(_BACKLOG)
        yield _url(*listener.getsockname()[:2])
    finally:
        components.closing.set()
        server.should_exit = True
        async with shutdown.when_urgent(server.abort_connections):
            await serving


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol given, asyncio disables Nagle's algorithm, which would delay every response by 40 ms.
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
