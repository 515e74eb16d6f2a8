"""What the status page shows, collected from the running service: one frozen value for each panel.

The values hold moments, in seconds since 1970, and no ages. So a panel whose value is equal to the last one has not
changed, and is neither rendered nor sent again.
"""

from collections import Counter
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from service.errors import Fault, ScoringError
from service.http_api.operations import RequestLimits
from service.http_api.status_page.job_view import JobRow, row_of
from service.http_api.status_page.serving import Serving, Tone, serving_now
from service.last_hour import PHASES, Durations, Minute, Phase
from service.lifespan import Components
from workers.types import DeviceStatus

NUM_ENDED_JOBS = 50


@dataclass(frozen=True, slots=True)
class DeviceView:
    """One device, and the worker on it."""

    status: DeviceStatus
    state: str
    tone: Tone


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
class Jobs:
    """Those that run, and those that ended last."""

    active: tuple[JobRow, ...]
    ended: tuple[JobRow, ...]
    trouble: str
    """Why they cannot be read."""


@dataclass(frozen=True, slots=True)
class PhaseView:
    """How long one phase took: seconds, by minute and over the hour; None where nothing ended."""

    phase: Phase
    median: float | None
    p99: float | None
    medians: tuple[float | None, ...]
    p99s: tuple[float | None, ...]


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
    def num_served(self) -> int:
        """In the whole hour."""
        return sum(self.served)

    @property
    def num_failed(self) -> int:
        """In the whole hour."""
        return sum(self.failed_by_others) + sum(self.failed_by_service)


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
    num_hits: int | None
    num_misses: int | None
    num_evictions: int | None


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


async def collect(components: Components) -> dict[str, object]:
    """The value of each panel, by the name of its template."""
    jobs = await _jobs(components)
    return {
        "serving": serving_now(components),
        "devices": _devices(components),
        "queue": _queue(components),
        "jobs": jobs,
        "hour": _hour(components),
        "cache": _cache(components),
        "about": _about(components),
    }


def _devices(components: Components) -> tuple[DeviceView, ...]:
    return tuple(DeviceView(status, *_state_of(status)) for status in components.pool.status())


def _state_of(status: DeviceStatus) -> tuple[str, Tone]:
    if not status.ready:
        return ("not ready", "bad") if status.trouble else ("starting", "warn")
    return ("evaluating" if status.busy else "idle"), "good"


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


async def _jobs(components: Components) -> Jobs:
    try:
        rows = [row_of(job) for job in components.jobs.recent(NUM_ENDED_JOBS)]
    except ScoringError as error:
        return Jobs((), (), f"{error.title}: {error.detail}")
    return Jobs(
        active=tuple(row for row in rows if row.ended is None),
        ended=tuple(row for row in rows if row.ended is not None),
        trouble="",
    )


def _hour(components: Components) -> Hour:
    minutes = components.metrics.last_hour.minutes()
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
    return sum(
        count for (fault, _), count in minute.failures.items() if (fault == "service") is by_service
    )


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
        max_bytes=components.settings.cache_max_bytes,
        trouble=cache.trouble or "",
        downloads=tuple(downloads),
        num_hits=None,
        num_misses=None,
        num_evictions=None,
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


__all__ = ["Serving", "collect"]
