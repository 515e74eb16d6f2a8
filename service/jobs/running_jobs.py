"""The jobs that this process works on: each is admitted or refused, done, and its end committed, then told.

A job is left for the next start where this service stops before it is done: its row keeps it.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from service import tracing
from service.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    QueueFull,
    ScoringError,
    ServiceTrouble,
)
from service.jobs.job import End, Job, Result
from service.jobs.job_store import JobStore
from service.log import log_bug
from service.scoring.competition import Competition
from service.scoring.results import CompetitionResult, Evaluation, OnProgress, Progress


class Scorer(Protocol):
    """What the work is given to: see service.scoring.scorer."""

    async def evaluate(
        self, competition: Competition, on_progress: OnProgress = ..., *, timeout_seconds: float | None = None
    ) -> Evaluation:
        """Score a competition of one model."""

    async def score(
        self, competition: Competition, on_progress: OnProgress = ..., *, timeout_seconds: float | None = None
    ) -> CompetitionResult:
        """Score a competition."""


class Admission(Protocol):
    """What is asked for room: see service.scoring.scheduler."""

    @property
    def timeout_seconds(self) -> float:
        """How long a request may take."""

    @property
    def num_free_places(self) -> int:
        """Requests that would be admitted now; 0 while the service is stopping."""

    @property
    def draining(self) -> bool:
        """Whether the service is stopping."""


@dataclass(eq=False, slots=True)
class RunningJob:
    """A job that this process works on."""

    job: Job
    task: asyncio.Task[None] | None = None
    admitted: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: ScoringError | None = None
    """Why it was not admitted."""
    is_stored: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once its row is committed: before that, nobody may see it."""
    written_event: int = 0
    """The event whose progress the database has."""

    async def stop(self) -> None:
        """Cancel the work and wait until it has ended; how the job ends is then somebody else's to write."""
        await _stop([self])


class RunningJobs:
    """The jobs that this process works on, by id."""

    def __init__(
        self,
        store: JobStore,
        scorer: Scorer,
        admission: Admission,
        *,
        outlive_this_process: bool,
        on_end: Callable[[Job], None],
        retry_seconds: float,
    ) -> None:
        """`outlive_this_process`: whether the store keeps jobs for the next start, so that they may be left to it.

        `on_end` is called with each job that has ended here. `retry_seconds`: between two attempts to commit an end.
        """
        self._store = store
        self._scorer = scorer
        self._admission = admission
        self._outlive_this_process = outlive_this_process
        self._on_end = on_end
        self._retry_seconds = retry_seconds
        self._by_id: dict[str, RunningJob] = {}
        self.num_changes = 0
        """Grows when a job begins or ends."""
        self.left_behind = asyncio.Event()
        """Set once a job is left for the next start: whoever follows one should ask again then."""

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, job_id: str) -> bool:
        return job_id in self._by_id

    def ids(self) -> list[str]:
        """Of all that are worked on, also those that nobody may see yet."""
        return list(self._by_id)

    def get(self, job_id: str) -> RunningJob | None:
        """None where this process does not work on it."""
        return self._by_id.get(job_id)

    def stored(self) -> list[RunningJob]:
        """Those whose row is committed."""
        return [running for running in self._by_id.values() if running.is_stored.is_set()]

    def begin(self, job: Job, competition: Competition) -> RunningJob:
        """Start to work on a job. Its end is not written before it is marked as stored."""
        running = RunningJob(job, written_event=job.event)
        self._by_id[job.id] = running
        running.task = asyncio.create_task(self._run(running, competition))
        running.task.add_done_callback(lambda _: self._remove(running))
        return running

    def mark_stored(self, running: RunningJob) -> None:
        """Its row is committed: it may be seen, and its end written."""
        running.is_stored.set()
        self.num_changes += 1

    async def wait_until_admitted(self, running: RunningJob) -> None:
        """Raises the error that refused it."""
        assert running.task is not None
        admission = asyncio.create_task(running.admitted.wait())
        try:
            await asyncio.wait([running.task, admission], return_when=asyncio.FIRST_COMPLETED)
        finally:
            admission.cancel()
        if running.refusal is not None:
            raise running.refusal
        if running.task.done():
            raise Draining("the service is stopping")

    async def stop_all(self) -> None:
        """Cancel all work and wait until it has ended."""
        await _stop(list(self._by_id.values()))

    def _remove(self, running: RunningJob) -> None:
        self._by_id.pop(running.job.id, None)
        running.job.notify_followers()
        assert running.task is not None
        if not running.task.cancelled() and isinstance(bug := running.task.exception(), Exception):
            log_bug(bug, job_id=running.job.id)

    async def _run(self, running: RunningJob, competition: Competition) -> None:
        """Do the work of a job and write how it ended; nothing is written where it is left for another start."""
        try:
            with tracing.span("job", {"soma_eval.job.kind": running.job.kind}):
                outcome: Result | ScoringError = await self._work(running, competition)
        except ScoringError as error:
            outcome = error
        except Exception as error:
            log_bug(error, job_id=running.job.id)
            outcome = InternalError("an unexpected error; the log has it under the job's id")
        if isinstance(outcome, ScoringError) and self._is_left(running, outcome):
            running.refusal = outcome
        else:
            await self._finish(running, outcome)

    async def _work(self, running: RunningJob, competition: Competition) -> Result:
        job = running.job
        seconds_left = job.deadline - time.time()
        if seconds_left <= 0:
            raise DeadlineExceeded(f"the request took longer than {self._admission.timeout_seconds:g} s")

        def on_progress(progress: Progress) -> None:
            running.admitted.set()
            job.note(progress)

        work = self._scorer.evaluate if job.kind == "eval" else self._scorer.score
        return await work(competition, on_progress, timeout_seconds=seconds_left)

    def _is_left(self, running: RunningJob, error: ScoringError) -> bool:
        """Whether the error is none of the job's: it was refused before it began, or is left for another start."""
        if isinstance(error, Draining) and self._outlive_this_process:
            self.left_behind.set()
            return True
        if running.admitted.is_set():
            return False
        return not running.is_stored.is_set() or isinstance(error, QueueFull)

    async def _finish(self, running: RunningJob, outcome: Result | ScoringError) -> None:
        """Commit how the job ended, then tell its followers. While the database is in trouble, it is tried again."""
        job = running.job
        await running.is_stored.wait()
        while True:
            end = end_of(job, outcome)
            try:
                is_written = await self._store.finish(job, end)
            except ServiceTrouble:
                await asyncio.sleep(self._retry_seconds)
                continue
            if is_written:
                job.become(end)
                self.num_changes += 1
                self._on_end(job)
            return  # a job that was cancelled or taken over meanwhile has another end


def end_of(job: Job, outcome: Result | ScoringError) -> End:
    """How a job with this outcome ends."""
    if isinstance(outcome, ScoringError):
        return End("failed", job.event + 1, error=outcome)
    return End("succeeded", job.event + 1, result=outcome)


async def _stop(running: Iterable[RunningJob]) -> None:
    tasks = [each.task for each in running if each.task is not None]
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
