"""A job: one request, how far it has come, and what has come of it."""

import asyncio
import re
import secrets
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

from service.errors import ScoringError
from service.scoring.results import CompetitionResult, Evaluation, Progress

JobKind = Literal["eval", "score"]
JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Result = Evaluation | CompetitionResult

_RUNNING_PHASES = ("loading", "evaluating", "done", "failed")
EVENTS_PER_ATTEMPT = 1_000_000
"""Each attempt at a job numbers its events from a multiple of this, so numbers rise across restarts too."""

_ID = re.compile(r"[0-9a-f]{32}")
_latest_time = 0


@dataclass(frozen=True, slots=True)
class End:
    """How a job has ended."""

    state: JobState
    event: int
    result: Result | None = None
    error: ScoringError | None = None
    finished_at: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(eq=False, slots=True)
class Job:
    """One request and what has come of it."""

    kind: JobKind
    num_models: int
    deadline: float
    """When the request has taken too long, in seconds since 1970."""
    id: str = field(default_factory=lambda: new_job_id())
    state: JobState = "queued"
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    finished_at: datetime | None = None
    event: int = 0
    """The number of its latest change."""
    data: Progress | None = None
    """The latest progress of the data's download."""
    models: list[Progress] = field(default_factory=list)
    """The latest progress of each model."""
    result: Result | None = None
    error: ScoringError | None = None
    evaluating_since: float | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        if not self.models:
            self.models = [Progress("queued", model_index=index) for index in range(self.num_models)]

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("succeeded", "failed", "cancelled")

    def note(self, progress: Progress) -> None:
        """Take in one report of progress."""
        if self.finished:
            return
        if progress.blob == "data":
            self.data = progress
        elif (index := progress.model_index) is not None:
            if progress.phase in ("done", "failed"):  # how many batches there were stays known
                progress = replace(self.models[index], phase=progress.phase, error=progress.error)
            self.models[index] = progress
            if progress.phase in _RUNNING_PHASES:
                self.state = "running"
            if progress.phase == "evaluating" and self.evaluating_since is None:
                self.evaluating_since = time.monotonic()
        self.event += 1
        self.notify_followers()

    def become(self, end: "End") -> None:
        """Enter the last state."""
        self.state, self.event, self.result, self.error = end.state, end.event, end.result, end.error
        self.finished_at = end.finished_at
        self.notify_followers()

    def notify_followers(self) -> None:
        """Wake whoever follows the job."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def estimated_seconds_left(self) -> float | None:
        """The time to download what is left at its latest rate, and to evaluate the batches left like those done.

        None while nothing of any batch of any model is done: the rate is not known before.
        """
        measured = [progress for progress in self.models if progress.batches]
        if self.finished or self.evaluating_since is None or not measured:
            return None
        num_done = sum(progress.batches for progress in measured)
        seconds_per_batch = (time.monotonic() - self.evaluating_since) / num_done
        num_batches = max(progress.num_batches or 0 for progress in measured)
        unfinished = [progress for progress in self.models if progress.phase not in ("done", "failed")]
        num_left = sum(num_batches - progress.batches for progress in unfinished)
        return max(map(_seconds_to_download, unfinished), default=0.0) + num_left * seconds_per_batch


def new_job_id() -> str:
    """Cannot be guessed, and sorts by when it was made: microseconds since 1970, then 72 random bits, in hex."""
    global _latest_time
    _latest_time = max(_latest_time + 1, time.time_ns() // 1000)
    return f"{_latest_time:014x}{secrets.token_hex(9)}"


def is_job_id(text: str) -> bool:
    """Whether it may be the id of a job."""
    return _ID.fullmatch(text) is not None


def _seconds_to_download(progress: Progress) -> float:
    """0.0 where nothing is known to be downloading."""
    if progress.phase != "downloading" or not progress.bytes_total or not progress.bytes_per_second:
        return 0.0
    return (progress.bytes_total - (progress.bytes_done or 0)) / progress.bytes_per_second
