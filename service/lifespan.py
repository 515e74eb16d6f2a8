"""Builds the components of the service in order, and closes them in reverse order. Shared by both APIs."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from service.cache.blob_cache import BlobCache
from service.cache.folder import make_private_folder
from service.component_metrics import ComponentMetrics
from service.config import Settings
from service.daemon_thread import run_in_daemon_thread
from service.download.downloader import Downloader
from service.jobs.jobs import Job, JobStore
from service.last_hour import LastHour
from service.metrics import Metrics
from service.scoring.scheduler import Scheduler
from service.scoring.scorer import Limits, Scorer
from service.scoring.traced_pool import TracedPool
from service.tracing import tracing
from workers.architectures import CURRENT_VERSION, load_architecture
from workers.pool import WorkerPool, create_pool


@dataclass(frozen=True, slots=True)
class Components:
    """What a running service consists of."""

    settings: Settings
    cache: BlobCache
    scorer: Scorer
    scheduler: Scheduler
    pool: WorkerPool
    jobs: JobStore
    metrics: Metrics
    architecture_version: str
    architecture: dict[str, Any]
    versions: dict[str, str]
    started_at: float = field(default_factory=time.time)
    """Seconds since 1970."""
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set before the APIs are closed: what is streamed without an end must end."""

    def readiness(self) -> Literal["ready", "draining", "no-worker", "no-storage"]:
        """Whether a request sent now would be worked on, and why not."""
        if self.scheduler.draining:
            return "draining"
        if self.cache.trouble is not None:
            return "no-storage"
        return "ready" if _every_kind_ready(self.pool) else "no-worker"


@asynccontextmanager
async def open_service(settings: Settings, pool: WorkerPool | None = None) -> AsyncIterator[Components]:
    """A running service for the length of the block: its cache swept, its workers tested.

    `pool` is started and closed with the service; without one, there is a worker process per device of `settings`.

    Raises CacheInUse, OSError, a ScoringError or a WorkerError when the machine does not allow it.
    """
    architecture = load_architecture(CURRENT_VERSION)
    config = architecture.ModelConfig.small() if settings.small_model else architecture.ModelConfig()
    async with AsyncExitStack() as stack:
        if settings.traces:
            await stack.enter_async_context(tracing(version("soma-eval")))
        cache = await stack.enter_async_context(open_cache(settings))
        pool = await stack.enter_async_context(open_pool(settings) if pool is None else _running(pool))
        if settings.traces:
            pool = TracedPool(pool)
        scheduler = Scheduler(
            queue_size=settings.queue_size,
            max_running=len(pool.status()) + 1,  # one more loads its weights while the others are evaluated
            max_downloads=settings.max_weights_at_once,
            kept_bytes=await cache.capacity_bytes(),
            timeout_seconds=settings.request_timeout_seconds,
        )
        limits = Limits(
            embedding_dim=config.embedding_dim,
            max_data_bytes=settings.max_data_bytes,
            max_model_bytes=settings.max_model_bytes,
            max_models=settings.max_models,
            architecture_version=CURRENT_VERSION,
        )
        versions = {name: version(name) for name in ("soma-eval", "torch", "soma-arrgen")}
        metrics = Metrics()
        jobs = JobStore(on_end=partial(_note_end, metrics.last_hour))
        stack.push_async_callback(jobs.close)
        metrics.register(
            ComponentMetrics(
                scheduler,
                cache,
                pool,
                jobs.num_by_state,
                build={
                    "version": versions["soma-eval"],
                    "torch": versions["torch"],
                    "soma_arrgen": versions["soma-arrgen"],
                    "architecture": CURRENT_VERSION,
                    "precision": settings.precision,
                },
            )
        )
        yield Components(
            settings=settings,
            cache=cache,
            scorer=Scorer(cache, scheduler, pool, limits, metrics),
            scheduler=scheduler,
            pool=pool,
            jobs=jobs,
            metrics=metrics,
            architecture_version=CURRENT_VERSION,
            architecture=asdict(config),
            versions=versions,
        )


def open_cache(settings: Settings) -> AbstractAsyncContextManager[BlobCache]:
    """The service's cache of blobs. Raises CacheInUse when another service uses it, ForeignFolder, OSError."""
    return _open_cache(settings, settings.data_dir)


@asynccontextmanager
async def open_private_cache(settings: Settings) -> AsyncIterator[BlobCache]:
    """A cache for one command, in a temporary folder within the data folder, which a service may be using.

    Raises ForeignFolder, OSError.
    """
    folder = await asyncio.to_thread(make_private_folder, settings.data_dir)
    try:
        async with _open_cache(settings, folder) as cache:
            yield cache
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


@asynccontextmanager
async def _open_cache(settings: Settings, folder: Path) -> AsyncIterator[BlobCache]:
    async with AsyncExitStack() as stack:
        downloader = Downloader.from_settings(settings)
        stack.push_async_callback(downloader.aclose)
        cache = BlobCache(folder, downloader, max_bytes=settings.cache_max_bytes)
        stack.push_async_callback(cache.close)
        await cache.start()
        yield cache


@asynccontextmanager
async def open_pool(settings: Settings) -> AsyncIterator[WorkerPool]:
    """A worker process per device, tested. Raises a WorkerError when none can start."""
    pool = await run_in_daemon_thread(  # the driver, asked for its devices, may hang
        lambda: create_pool(
            devices=settings.device,
            small_model=settings.small_model,
            precision=settings.precision,
            memory_budget_bytes=settings.device_memory_bytes,
        )
    )
    async with _running(pool):
        yield pool


@asynccontextmanager
async def _running(pool: WorkerPool) -> AsyncIterator[WorkerPool]:
    try:
        await pool.start()
        yield pool
    finally:
        await pool.close()


def _every_kind_ready(pool: WorkerPool) -> bool:
    """Whether each kind of device has a worker that recently passed its self-test."""
    workers = pool.status()
    kinds = {worker.device.partition(":")[0] for worker in workers}
    return bool(kinds) and kinds == {w.device.partition(":")[0] for w in workers if w.ready}


def _note_end(last_hour: LastHour, job: Job) -> None:
    if job.error is not None:
        last_hour.note(job.error.full_code, job.error.fault)
    elif job.state == "succeeded":
        last_hour.note("ok", None)
