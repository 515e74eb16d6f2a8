"""Metrics that are read from the running parts whenever they are rendered: devices, cache, downloads, jobs."""

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from service.cache.blob_cache import BlobCache
from service.device_names import device_names
from service.errors import ServiceTrouble
from service.jobs.database import Database
from service.jobs.job import JobState
from service.jobs.jobs import JobService
from service.metrics import PREFIX
from service.scoring.scheduler import Scheduler
from workers.pool import WorkerPool
from workers.types import DeviceStatus

REFRESH_SECONDS = 2.0
"""How long a database may take to count the jobs."""

_OF_A_DEVICE = ("node", "device")
"""Labels; a node without a name is this machine, and Prometheus drops a label that is empty."""

_Label = TypeVar("_Label", bound=str)


@dataclass(eq=False, slots=True)
class ComponentMetrics:
    """A collector of prometheus_client over the parts of one service. No label is made of anybody's input."""

    scheduler: Scheduler
    cache: BlobCache
    pool: WorkerPool
    database: Database
    jobs: JobService
    build: Mapping[str, str]
    """Labels of `build_info`: versions, architecture, precision."""
    num_jobs_by_state: Mapping[JobState, int] = field(default_factory=dict)
    """As of the last refresh."""

    async def refresh(self) -> None:
        """Count the jobs. While the database is in trouble, the numbers stay what they were: see `state_ok`."""
        with contextlib.suppress(ServiceTrouble, TimeoutError):
            async with asyncio.timeout(REFRESH_SECONDS):
                self.num_jobs_by_state = await self.jobs.num_by_state()

    def collect(self) -> Iterator[Metric]:
        """Every family, each with its samples of now."""
        build = GaugeMetricFamily(
            f"{PREFIX}build_info", "What is running; always 1.", labels=list(self.build)
        )
        build.add_metric(list(self.build.values()), 1)
        yield build
        yield from self._queue()
        yield from _devices(self.pool.status())
        yield _by_label(
            GaugeMetricFamily(
                f"{PREFIX}node_up",
                "1 while the machine is there, 0 for an hour after it left the cluster.",
                labels=["node"],
            ),
            self.pool.nodes(),
        )
        yield from self._cache()
        yield _by_label(
            GaugeMetricFamily(f"{PREFIX}jobs", "Jobs that are kept, by state.", labels=["state"]),
            self.num_jobs_by_state,
        )

        yield _gauge("jobs_running", "Jobs that this service works on.", self.jobs.num_running)
        yield _gauge(
            "state_ok", "1 while the database of jobs and results works.", self.database.trouble is None
        )

    def _queue(self) -> Iterator[Metric]:
        scheduler = self.scheduler
        yield _gauge("queue_size", "Requests that may run or wait at once.", scheduler.queue_size)
        yield _gauge("requests_admitted", "Requests that are worked on or wait.", scheduler.num_admitted)
        yield _gauge("evaluations_waiting", "Evaluations that wait for a worker.", scheduler.num_waiting)
        yield _gauge(
            "weights_waiting", "Models that wait for a weights slot.", scheduler.num_waiting_for_room
        )

    def _cache(self) -> Iterator[Metric]:
        cache, counts, downloads = self.cache, self.cache.counts, self.cache.download_counts
        yield _gauge("cache_bytes", "What all files of the cache take.", cache.bytes_used)
        yield _gauge("cache_limit_bytes", "What they may take.", cache.max_bytes)
        yield _gauge("storage_ok", "1 while the data folder's disk works.", cache.trouble is None)
        yield _counter("cache_hits", "Files that were in the cache.", counts.hits)
        yield _counter("cache_misses", "Files that had to be downloaded.", counts.misses)
        yield _counter("cache_evictions", "Files that were deleted to make room.", counts.evictions)
        yield _by_label(
            CounterMetricFamily(
                f"{PREFIX}download_bytes", "Bytes received, by what they belong to.", labels=["kind"]
            ),
            downloads.bytes_by_kind,
        )
        yield _by_label(
            CounterMetricFamily(
                f"{PREFIX}download_failures", "Downloads that failed, by the error's code.", labels=["reason"]
            ),
            downloads.failures_by_code,
        )


def _devices(statuses: Sequence[DeviceStatus]) -> Iterator[Metric]:
    yield _gauge(
        "workers_ready", "Workers that recently passed a self-test.", sum(each.ready for each in statuses)
    )
    yield _gauge("workers_busy", "Workers with a job.", sum(each.busy for each in statuses))
    yield _gauge("worker_restarts", "Workers started again so far.", sum(each.restarts for each in statuses))
    up = _of_devices("worker_up", "1 while the device has a worker that recently passed its self-test.")
    age = _of_devices("self_test_age_seconds", "Since the device last passed its self-test.")
    memory = GaugeMetricFamily(
        f"{PREFIX}device_memory_bytes",
        "Memory: total of the device, used by its worker, weights that stay loaded, what these may take.",
        labels=[*_OF_A_DEVICE, "kind"],
    )
    restarts = CounterMetricFamily(
        f"{PREFIX}worker_restarts",
        "Workers started again, by what ended the one before.",
        labels=[*_OF_A_DEVICE, "reason"],
    )
    for name, status in zip(device_names(statuses), statuses, strict=True):
        device = [status.node, name]
        up.add_metric(device, status.ready)
        if status.self_test_age_seconds is not None:
            age.add_metric(device, status.self_test_age_seconds)
        if status.memory is not None:
            for kind in ("total", "used", "weights", "weights_limit"):
                memory.add_metric([*device, kind], getattr(status.memory, kind))
        for reason, number in status.restarts_by_reason.items():
            restarts.add_metric([*device, reason], number)
    yield from (up, age, memory, restarts)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(PREFIX + name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(PREFIX + name, text, value=value)


def _of_devices(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(PREFIX + name, text, labels=_OF_A_DEVICE)


def _by_label(
    family: GaugeMetricFamily | CounterMetricFamily, numbers: Mapping[_Label, float]
) -> GaugeMetricFamily | CounterMetricFamily:
    """The family, of one label, with a sample for each of its values."""
    for value, number in numbers.items():
        family.add_metric([value], number)
    return family
