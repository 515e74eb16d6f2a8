"""What the status page shows, collected from the running service: one frozen value for each panel.

The values hold moments, in seconds since 1970, and no ages. So a panel whose value is equal to the last one has not
changed, and is neither rendered nor sent again.
"""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from service.device_names import device_names
from service.errors import Fault
from service.http_api.operations import RequestLimits
from service.http_api.status_page.job_list import JobList
from service.http_api.status_page.leaderboards import LeaderboardList
from service.http_api.status_page.serving import Tone, serving_now
from service.last_hour import PHASES, Durations, Minute, Phase
from service.lifespan import Components
from workers.types import DeviceStatus, RunningTask, WorkerMemory


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device, and the worker on it."""

    node: str
    """Name of its machine in a cluster; empty for this one."""
    name: str
    description: str
    state: str
    tone: Tone
    trouble: str
    tested: float | None
    """When it last passed its self-test."""
    num_restarts: int
    restarts: tuple[tuple[str, int], ...]
    """By what ended the worker before, the most frequent first."""
    last_death: str
    memory: WorkerMemory | None
    resident: tuple[str, ...]
    """Checksums of the weights that lie on it."""
    task: RunningTask | None


@dataclass(frozen=True, slots=True)
class Devices:
    """All devices, and the nodes that have none any more."""

    devices: tuple[DeviceView, ...]
    nodes_that_left: tuple[str, ...]
    """In the last hour."""


@dataclass(frozen=True, slots=True)
class Queue:
    """Who runs, and who waits for whom."""

    num_admitted: int
    queue_size: int
    num_running: int
    num_waiting: int
    num_waiting_for_room: int
    oldest_waiting_since: float | None
    retry_after_seconds: float | None
    """None while a request would be admitted."""


@dataclass(frozen=True, slots=True)
class PhaseView:
    """How long one phase took: seconds, by minute and over the hour; None where nothing ended."""

    phase: Phase
    median: float | None
    p99: float | None
    medians: tuple[float | None, ...]
    p99s: tuple[float | None, ...]

    @property
    def longest(self) -> float:
        """The upper edge of its chart."""
        return max([seconds for seconds in self.p99s if seconds], default=1.0)


@dataclass(frozen=True, slots=True)
class FailureView:
    """How often requests and jobs failed with one code."""

    fault: Fault
    code: str
    count: int
    by_minute: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Hour:
    """The last 60 minutes, the oldest first."""

    last_minute: int
    served: tuple[int, ...]
    failed_by_others: tuple[int, ...]
    failed_by_service: tuple[int, ...]
    phases: tuple[PhaseView, ...]
    failures: tuple[FailureView, ...]
    """The most frequent first."""

    @property
    def without_own_failures(self) -> tuple[int, ...]:
        """Served, and failed by others' fault."""
        return tuple(map(sum, zip(self.served, self.failed_by_others, strict=True)))

    @property
    def answered(self) -> tuple[int, ...]:
        """Served or failed."""
        return tuple(map(sum, zip(self.without_own_failures, self.failed_by_service, strict=True)))

    @property
    def is_empty(self) -> bool:
        """Whether nothing has happened."""
        return not any(self.answered) and all(phase.median is None for phase in self.phases)


@dataclass(frozen=True, slots=True)
class DownloadView:
    """A file on its way here."""

    kind: str
    bytes_done: int
    bytes_total: int | None
    bytes_per_second: float


@dataclass(frozen=True, slots=True)
class Cache:
    """The files kept on disk."""

    bytes_used: int
    max_bytes: int
    trouble: str
    downloads: tuple[DownloadView, ...]
    num_hits: int
    num_misses: int
    num_evictions: int


@dataclass(frozen=True, slots=True)
class About:
    """What does not change while the service runs."""

    version: str
    versions: tuple[tuple[str, str], ...]
    architecture_version: str
    architecture: tuple[tuple[str, Any], ...]
    precision: str
    limits: tuple[tuple[str, Any], ...]
    started: float
    has_api_keys: bool


class Collector:
    """Collects the panels; what is costly and has not changed is kept from the last time."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._about: About | None = None
        self._jobs = JobList(components)
        self._leaderboards = LeaderboardList(components.settings.data_dir)
        self._hour: tuple[tuple[int, int], Hour] | None = None

    async def __call__(self) -> Mapping[str, object]:
        """The value of each panel, by the name of its template."""
        components = self._components
        self._about = self._about or _about(components)
        return {
            "serving": serving_now(components),
            "devices": _devices(components),
            "queue": _queue(components),
            "jobs": await self._jobs.read(),
            "hour": self._last_hour(),
            "cache": _cache(components),
            "leaderboards": await self._leaderboards.read(),
            "about": self._about,
        }

    def _last_hour(self) -> Hour:
        last_hour = self._components.metrics.last_hour
        version = last_hour.version, last_hour.this_minute()
        if self._hour is None or self._hour[0] != version:
            self._hour = version, _hour(last_hour.minutes())
        return self._hour[1]


def _devices(components: Components) -> Devices:
    statuses, now = components.pool.status(), time.time()
    devices = (
        _device(status, name, now) for status, name in zip(statuses, device_names(statuses), strict=True)
    )
    return Devices(
        tuple(devices), tuple(node for node, is_there in components.pool.nodes().items() if not is_there)
    )


def _device(status: DeviceStatus, name: str, now: float) -> DeviceView:
    state, tone = _state_of(status)
    age = status.self_test_age_seconds
    return DeviceView(
        node=status.node,
        name=name,
        description=status.device_name,
        state=state,
        tone=tone,
        trouble=status.trouble,
        tested=None if age is None else round(now - age),
        num_restarts=status.restarts,
        restarts=tuple((+Counter(status.restarts_by_reason)).most_common()),
        last_death=status.last_death,
        memory=status.memory,
        resident=tuple(sorted(status.resident)),
        task=status.task,
    )


def _state_of(status: DeviceStatus) -> tuple[str, Tone]:
    if not status.ready:
        return ("not ready", "bad") if status.trouble else ("starting", "warn")
    if status.task is not None:
        return status.task.phase, "good"
    return ("busy" if status.busy else "idle"), "good"


def _queue(components: Components) -> Queue:
    scheduler = components.scheduler
    is_full = scheduler.draining or scheduler.num_admitted >= components.settings.queue_size
    return Queue(
        num_admitted=scheduler.num_admitted,
        queue_size=components.settings.queue_size,
        num_running=scheduler.num_running,
        num_waiting=scheduler.num_waiting,
        num_waiting_for_room=scheduler.num_waiting_for_room,
        oldest_waiting_since=scheduler.oldest_waiting_since,
        retry_after_seconds=scheduler.retry_after_seconds() if is_full else None,
    )


def _hour(minutes: list[Minute]) -> Hour:
    totals = Counter[tuple[Fault, str]]()
    for minute in minutes:
        totals.update(minute.failures)
    return Hour(
        last_minute=minutes[-1].number,
        served=tuple(minute.num_served for minute in minutes),
        failed_by_others=tuple(_failed(minute, by_service=False) for minute in minutes),
        failed_by_service=tuple(_failed(minute, by_service=True) for minute in minutes),
        phases=tuple(_phase(phase, minutes) for phase in PHASES),
        failures=tuple(
            FailureView(fault, code, count, tuple(minute.failures[fault, code] for minute in minutes))
            for (fault, code), count in totals.most_common()
        ),
    )


def _failed(minute: Minute, *, by_service: bool) -> int:
    return sum(count for (fault, _), count in minute.failures.items() if (fault == "service") is by_service)


def _phase(phase: Phase, minutes: list[Minute]) -> PhaseView:
    durations = [minute.phases[phase] for minute in minutes]
    whole = Durations.all_of(durations)
    return PhaseView(
        phase,
        whole.quantile(0.5),
        whole.quantile(0.99),
        tuple(part.quantile(0.5) for part in durations),
        tuple(part.quantile(0.99) for part in durations),
    )


def _cache(components: Components) -> Cache:
    cache = components.cache
    downloads = []
    for download in cache.downloads():
        progress = download.progress
        downloads.append(
            DownloadView(
                "data" if download.kind == "data" else "weights",
                progress.bytes_done if progress else 0,
                progress.bytes_total if progress else None,
                progress.bytes_per_second if progress else 0.0,
            )
        )
    return Cache(
        bytes_used=cache.bytes_used,
        max_bytes=cache.max_bytes,
        trouble=cache.trouble or "",
        downloads=tuple(downloads),
        num_hits=cache.counts.hits,
        num_misses=cache.counts.misses,
        num_evictions=cache.counts.evictions,
    )


def _about(components: Components) -> About:
    limits = RequestLimits.model_validate(components.settings, from_attributes=True, extra="ignore")
    return About(
        version=version("soma-eval"),
        versions=tuple(sorted(components.versions.items())),
        architecture_version=components.architecture_version,
        architecture=tuple(components.architecture.items()),
        precision=components.settings.precision,
        limits=tuple(limits.model_dump().items()),
        started=components.started_at,
        has_api_keys=bool(components.settings.api_keys),
    )
