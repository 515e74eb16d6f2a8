"""Both doors over one service in one process: from the first socket to the last goodbye."""

import asyncio
import contextlib
import gc
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import NoReturn

import structlog
import uvicorn

from service.config import Settings
from service.grpc_api import serve_grpc
from service.http_api import create_app
from service.http_protocol import BoundedHttpProtocol, allow_more_open_files
from service.lifespan import Parts, open_service
from service.log import log_loop_trouble
from service.unless import unless

KEEP_ALIVE_SECONDS = 30
_LAST_GOODBYES_SECONDS = 5

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


async def serve(settings: Settings, on_ready: Callable[[Addresses], None]) -> None:
    """Serve until SIGTERM or SIGINT, then drain: running work finishes, or is stopped and told so at the limit.

    Raises OSError when an address is taken, and what `open_service` raises.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_trouble)
    allow_more_open_files()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        try:
            parts, addresses = await unless(_watch(stop), stack.enter_async_context(run_service(settings)))
        except _StopAsked:
            log.info("stopped before the start had ended")
            return
        gc.collect()
        gc.freeze()  # what is here now stays: a full collection would look at all of it while requests wait
        on_ready(addresses)
        await stop.wait()
        log.info("draining", admitted=parts.scheduler.num_admitted)
        if not await parts.scheduler.drain(settings.drain_timeout_seconds):
            log.warning("work is stopped unfinished", requests=parts.scheduler.num_admitted)
            await parts.scheduler.end_admitted(_LAST_GOODBYES_SECONDS)


class _StopAsked(Exception):
    """A signal has come."""


async def _watch(stop: asyncio.Event) -> NoReturn:
    await stop.wait()
    raise _StopAsked


@asynccontextmanager
async def run_service(settings: Settings) -> AsyncIterator[tuple[Parts, Addresses]]:
    """The service with its doors open for the length of the block."""
    listener = _listen(settings.host, settings.port)
    with listener:
        async with open_service(settings) as parts, _http_door(parts, listener) as http:
            if settings.grpc_port == "off":
                yield parts, Addresses(http, None)
                return
            async with serve_grpc(
                parts.scorer,
                host=settings.host,
                port=settings.grpc_port,
                is_ready=lambda: parts.readiness() == "ready",
                metrics=parts.metrics,
            ) as grpc_port:
                if settings.api_keys and not _is_loopback(settings.host):
                    log.warning("gRPC asks for no API key", address=_url(settings.host, grpc_port))
                yield parts, Addresses(http, _url(settings.host, grpc_port))


@asynccontextmanager
async def _http_door(parts: Parts, listener: socket.socket) -> AsyncIterator[str]:
    server = _HttpServer(
        uvicorn.Config(
            create_app(parts),
            http=BoundedHttpProtocol,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=_LAST_GOODBYES_SECONDS,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        while not server.started:
            if serving.done():
                await serving
                raise RuntimeError("the HTTP server ended before it began")
            await asyncio.sleep(0.01)
        yield _url(*listener.getsockname()[:2])
    finally:
        server.should_exit = True
        await serving


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named TCP, or asyncio leaves Nagle's algorithm on and every answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
