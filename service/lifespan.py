"""Builds the components of the service in order, and closes them in reverse order. Shared by both APIs."""

import asyncio
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import structlog

from service.cache.blob_cache import BlobCache
from service.cache.folder import claim_folder, make_private_folder
from service.component_metrics import ComponentMetrics
from service.config import Settings
from service.daemon_thread import run_in_daemon_thread
from service.download.downloader import Downloader
from service.jobs import state_key
from service.jobs.database import Database, open_database
from service.jobs.job import Job
from service.jobs.jobs import JobService
from service.jobs.result_store import ResultStore
from service.jobs.screen_keys import ScreenKeys
from service.jobs.state_key import StateKey
from service.jobs.upkeep import Retention
from service.last_hour import LastHour
from service.metrics import Metrics
from service.scoring.evaluator import Evaluator
from service.scoring.kept_pieces import KeptPieces
from service.scoring.kept_results import KeptResults, NoKeptResults, ServedModel
from service.scoring.limits import Limits
from service.scoring.scheduler import Scheduler
from service.scoring.scorer import Scorer
from service.scoring.screener import Screener
from service.scoring.served_architecture import architecture_of
from service.scoring.traced_pool import TracedPool
from service.tracing import tracing
from workers.architectures import CURRENT_VERSION
from workers.pool import WorkerPool, create_cluster_pool, create_pool

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Components:
    """What a running service consists of."""

    settings: Settings
    cache: BlobCache
    scorer: Scorer
    screener: Screener
    scheduler: Scheduler
    pool: WorkerPool
    database: Database
    jobs: JobService
    screen_keys: ScreenKeys
    metrics: Metrics
    architecture_version: str
    architecture: dict[str, Any]
    architecture_name: str
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

    Raises CacheInUse, NewerDatabase, BadStateKey, OSError, a ScoringError or a WorkerError when the machine does not
    allow it. Jobs that an earlier run has left are gone on with.
    """
    model = served_model(settings)
    async with AsyncExitStack() as stack:
        if settings.traces:
            from service.otel_tracer import OtelTracer

            await stack.enter_async_context(tracing(OtelTracer(version("soma-eval"))))
        cache = await stack.enter_async_context(open_cache(settings))
        pool = await stack.enter_async_context(
            _running(pool) if pool is not None else _open_served_pool(settings)
        )
        if settings.traces:
            pool = TracedPool(pool)
        scheduler = await _make_scheduler(settings, pool, cache)
        metrics = Metrics()
        database = await stack.enter_async_context(open_state(settings))
        kept = kept_results(database, settings)
        evaluator = Evaluator(pool, kept, model, metrics)
        limits = _limits(settings)
        scorer = Scorer(cache, scheduler, evaluator, limits, metrics)
        key = await asyncio.to_thread(load_state_key, settings)
        jobs = JobService(
            database,
            key,
            scorer,
            scheduler,
            retention=Retention(settings.max_finished_jobs, settings.finished_job_seconds),
            on_end=partial(_note_end, metrics.last_hour),
        )
        stack.push_async_callback(jobs.close)
        jobs.start()
        versions = {name: version(name) for name in ("soma-eval", "torch", "soma-arrgen")}
        build = {
            "version": versions["soma-eval"],
            "torch": versions["torch"],
            "soma_arrgen": versions["soma-arrgen"],
            "architecture": CURRENT_VERSION,
            "precision": settings.precision,
        }
        metrics.register(ComponentMetrics(scheduler, cache, pool, database, jobs, build))
        yield Components(
            settings=settings,
            cache=cache,
            scorer=scorer,
            screener=Screener(
                cache, scheduler, pool, evaluator, KeptPieces(pool, kept, model, metrics), limits
            ),
            scheduler=scheduler,
            pool=pool,
            database=database,
            jobs=jobs,
            screen_keys=ScreenKeys(database, key),
            metrics=metrics,
            architecture_version=CURRENT_VERSION,
            architecture=dict(model.config),
            architecture_name=limits.architecture.name,
            versions=versions,
        )


@asynccontextmanager
async def open_private_scorer(settings: Settings) -> AsyncIterator[Scorer]:
    """A scorer for one command, with workers and a cache of its own; a service may be using the data folder.

    It computes everything anew. Raises ForeignFolder, OSError, or a WorkerError when no worker can start.
    """
    model, metrics = served_model(settings), Metrics()
    async with open_private_cache(settings) as cache, open_pool(settings) as pool:
        scheduler = await _make_scheduler(settings, pool, cache)
        evaluator = Evaluator(pool, NoKeptResults(), model, metrics)
        yield Scorer(cache, scheduler, evaluator, _limits(settings), metrics)


async def _make_scheduler(settings: Settings, pool: WorkerPool, cache: BlobCache) -> Scheduler:
    return Scheduler(
        queue_size=settings.queue_size,
        num_workers=lambda: len(pool.status()),
        max_downloads=settings.max_weights_at_once,
        kept_bytes=await cache.capacity_bytes(),
        timeout_seconds=settings.request_timeout_seconds,
    )


def _limits(settings: Settings) -> Limits:
    return Limits(
        architecture=architecture_of(settings),
        max_data_bytes=settings.max_data_bytes,
        max_model_bytes=settings.max_model_bytes,
        max_models=settings.max_models,
        architecture_version=CURRENT_VERSION,
    )


def served_model(settings: Settings) -> ServedModel:
    """The architecture and the precision that the settings name."""
    config = architecture_of(settings)
    return ServedModel(CURRENT_VERSION, config.to_dict(), settings.precision)


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncIterator[Database]:
    """The database of jobs and results. Raises NewerDatabase; other trouble may pass, and is told to who uses it."""
    database = open_database(settings.state_database, settings.data_dir)
    try:
        await database.start()
        yield database
    finally:
        await database.close()


def load_state_key(settings: Settings) -> StateKey:
    """The key that seals stored requests; one of this process alone where nothing is kept. Raises OSError."""
    if settings.state_database == "off":
        return state_key.random_state_key()
    path = settings.state_key_file or settings.data_dir / state_key.FILE_NAME
    return state_key.load_state_key(path)


def kept_results(database: Database, settings: Settings) -> KeptResults:
    """The results that are kept in the database, if any are to be."""
    if not database.is_kept or settings.max_kept_results == 0:
        return NoKeptResults()
    return ResultStore(
        database, max_results=settings.max_kept_results, max_age_seconds=settings.max_result_age_seconds
    )


@asynccontextmanager
async def open_kept_results(settings: Settings) -> AsyncIterator[KeptResults]:
    """The kept results for one command, beside a service that may use them too; none if the folder cannot be used."""
    async with AsyncExitStack() as stack:
        try:
            await asyncio.to_thread(claim_folder, settings.data_dir)
            kept = kept_results(await stack.enter_async_context(open_state(settings)), settings)
        except OSError as error:
            log.warning("no result is kept", reason=error.strerror or str(error))
            kept = NoKeptResults()
        yield kept


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
    """A worker process per device of this machine, tested. Raises a WorkerError when none can start."""
    # In a thread that is not waited for at the end: a driver that is asked for its devices may hang.
    pool = await run_in_daemon_thread(lambda: _create_pool(settings))
    async with _running(pool):
        yield pool


def _open_served_pool(settings: Settings) -> AbstractAsyncContextManager[WorkerPool]:
    """The pool of a service, which may be on a cluster."""
    return _running(_create_cluster_pool(settings)) if settings.pool == "ray" else open_pool(settings)


def _create_pool(settings: Settings) -> WorkerPool:
    return create_pool(
        devices=settings.device,
        small_model=settings.small_model,
        architecture=_architecture_text(settings),
        precision=settings.precision,
        memory_budget_bytes=settings.device_memory_bytes,
    )


def _architecture_text(settings: Settings) -> str:
    return "" if settings.architecture is None else architecture_of(settings).to_json()


def _create_cluster_pool(settings: Settings) -> WorkerPool:
    return create_cluster_pool(
        settings.ray_address,
        settings.device,
        small_model=settings.small_model,
        architecture=_architecture_text(settings),
        precision=settings.precision,
        memory_budget_bytes=settings.device_memory_bytes,
        allow_open=settings.allow_open_cluster,
        data_dir=settings.node_data_dir,
        data_max_bytes=settings.node_cache_max_bytes,
    )


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
