"""The service with both APIs on a thread of this process, over a pool without processes: starts in milliseconds."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import structlog

from service.config import ExplicitSettings
from service.http_api.protocol import HttpLimits
from service.lifespan import Components
from service.server import run_service
from tests.in_process_pool import Answer, InProcessPool

START_SECONDS = 60.0

structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # lines of log would lie among pytest's


class InProcessService:
    """A running service, where it listens, and its pool."""

    def __init__(self, pool: InProcessPool) -> None:
        self.pool = pool
        self.http_url = ""
        self.grpc_url = ""
        self.components: Components | None = None
        """What it consists of, which only its own thread may change."""
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    def client(self, **options: Any) -> httpx.Client:
        """An HTTP client of this service. There is no TLS for which certificates would have to be loaded."""
        return httpx.Client(base_url=self.http_url, trust_env=False, verify=False, timeout=60.0, **options)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Evaluations that begin within the block do not end before it does, unless they are cancelled."""
        self.pool.released.clear()
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self.pool.released.set)

    def drain(self) -> None:
        """Refuse new work from now on, as SIGTERM has it do."""
        assert self.components is not None
        drain = self.components.scheduler.drain(0.0)
        asyncio.run_coroutine_threadsafe(drain, self._loop).result(START_SECONDS)

    @contextmanager
    def running(self, settings: ExplicitSettings, http_limits: HttpLimits | None) -> Iterator[None]:
        """Run it for the length of the block."""
        started = threading.Event()
        errors: list[BaseException] = []

        async def run() -> None:
            async with run_service(settings, pool=self.pool, http_limits=http_limits) as running:
                self.components, addresses = running
                self.http_url, self.grpc_url = addresses.http, addresses.grpc or ""
                started.set()
                await self._stop.wait()

        def run_loop() -> None:
            try:
                with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                    runner.run(run())
            except BaseException as error:
                errors.append(error)
            finally:
                started.set()

        thread = threading.Thread(target=run_loop, daemon=True)
        thread.start()
        try:
            assert started.wait(START_SECONDS)
            if not errors:
                yield
        finally:
            if thread.is_alive():
                self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(START_SECONDS)
        if errors:
            raise errors[0]


@contextmanager
def in_process_service(
    folder: Path,
    answers: dict[str, Answer] | None = None,
    http_limits: HttpLimits | None = None,
    **settings: Any,
) -> Iterator[InProcessService]:
    """A small-model service that may fetch from loopback, for the length of the block. `answers`: see the pool."""
    given: dict[str, Any] = {
        "port": 0,
        "grpc_port": 0,
        "data_dir": folder,
        "small_model": True,
        "max_kept_results": 0,  # so that each evaluation reaches the pool
        "allow_http": True,
        "allow_private_addresses": True,
        **settings,
    }
    service = InProcessService(InProcessPool(answers))
    with service.running(ExplicitSettings(**given), http_limits):
        yield service
