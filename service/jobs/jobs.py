"""Long work: a request that goes on in the background while its caller asks for its progress.

A job that waits or runs is kept; those that have ended are kept up to a number, the last to end longest, and an age.
"""

import asyncio
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal, get_args

from service.errors import InternalError, JobNotFound, ScoringError
from service.log import log_bug
from service.scoring.results import CompetitionResult, Evaluation, OnProgress, Progress

JobState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
Work = Callable[[OnProgress], Awaitable[Evaluation | CompetitionResult]]

_RUNNING_PHASES = ("loading", "evaluating", "done", "failed")


@dataclass(eq=False, slots=True)
class Job:
    """One request and what has come of it."""

    kind: Literal["eval", "score"]
    num_models: int
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    state: JobState = "queued"
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    finished_at: datetime | None = None
    data: Progress | None = None
    """The latest progress of the data's download."""
    models: list[Progress] = field(default_factory=list)
    """The latest progress of each model."""
    result: Evaluation | CompetitionResult | None = None
    error: ScoringError | None = None
    evaluating_since: float | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.models = [Progress("queued", model_index=index) for index in range(self.num_models)]

    @property
    def finished(self) -> bool:
        """Whether nothing more will happen to it."""
        return self.state in ("succeeded", "failed", "cancelled")

    def note(self, progress: Progress) -> None:
        """Take in one report of progress."""
        if progress.blob == "data":
            self.data = progress
        elif (index := progress.model_index) is not None:
            if progress.phase in ("done", "failed"):  # how many batches there were stays known
                progress = replace(self.models[index], phase=progress.phase)
            self.models[index] = progress
            if progress.phase in _RUNNING_PHASES:
                self.state = "running"
            if progress.phase == "evaluating" and self.evaluating_since is None:
                self.evaluating_since = time.monotonic()
        self._notify_followers()

    def finish(self, state: JobState) -> None:
        """Enter the last state."""
        self.state = state
        self.finished_at = datetime.now(UTC)
        self._notify_followers()

    def _notify_followers(self) -> None:
        """Wake whoever follows the job."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def estimated_seconds_left(self) -> float | None:
        """The time to download what is left at its latest rate, and to evaluate the batches left like those done.

        None while no batch of any model is done: the rate is not known before.
        """
        measured = [progress for progress in self.models if progress.batches_done]
        if self.finished or self.evaluating_since is None or not measured:
            return None
        num_done = sum(progress.batches_done or 0 for progress in measured)
        seconds_per_batch = (time.monotonic() - self.evaluating_since) / num_done
        num_batches = max(progress.num_batches or 0 for progress in measured)
        unfinished = [progress for progress in self.models if progress.phase not in ("done", "failed")]
        num_left = sum(num_batches - (progress.batches_done or 0) for progress in unfinished)
        return max(map(_seconds_to_download, unfinished), default=0.0) + num_left * seconds_per_batch


class JobStore:
    """The jobs that run, and those recently finished."""

    def __init__(
        self,
        *,
        max_finished: int = 256,
        max_age_seconds: float = 3600.0,
        on_end: Callable[[Job], None] = lambda job: None,
    ) -> None:
        """`on_end` is called with each job that was admitted and has ended."""
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._max_finished = max_finished
        self._max_age_seconds = max_age_seconds
        self._on_end = on_end

    async def submit(self, kind: Literal["eval", "score"], num_models: int, work: Work) -> Job:
        """Start the work; returns once it is admitted. Raises the error that refused it."""
        self._forget_old()
        job = Job(kind, num_models)
        admitted = asyncio.Event()

        def on_progress(progress: Progress) -> None:
            admitted.set()
            job.note(progress)

        task = asyncio.create_task(self._run(job, work, on_progress))
        task.add_done_callback(lambda _: self._end(job, was_admitted=admitted.is_set()))
        self._jobs[job.id], self._tasks[job.id] = job, task
        admission = asyncio.create_task(admitted.wait())
        try:
            await asyncio.wait([task, admission], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:  # the client will never learn the job's id
            task.cancel()
            raise
        finally:
            admission.cancel()
        if not admitted.is_set() and job.error is not None:
            del self._jobs[job.id]
            raise job.error
        return job

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        self._forget_old()
        try:
            return self._jobs[job_id]
        except KeyError:
            raise JobNotFound("there is no job of this id, or its result is no longer kept") from None

    def recent(self, limit: int) -> list[Job]:
        """All that wait or run, and the `limit` that ended last; the latest first of both."""
        self._forget_old()
        ended = [job for job in self._jobs.values() if job.finished]
        active = [job for job in self._jobs.values() if not job.finished]
        return [*reversed(active), *reversed(ended[-limit:])]

    def num_by_state(self) -> dict[JobState, int]:
        """How many jobs are kept in each state, 0 included."""
        self._forget_old()
        states = Counter(job.state for job in self._jobs.values())
        return {state: states[state] for state in get_args(JobState)}

    async def cancel(self, job_id: str) -> Job:
        """Stop the work; returns when it has stopped. A finished job stays what it is."""
        job = self.get(job_id)
        task = self._tasks.get(job_id)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
        return job

    async def follow(self, job_id: str) -> AsyncIterator[Job]:
        """The job at once and after every change, up to its end."""
        job = self.get(job_id)
        while True:
            changed = job.changed
            yield job
            if job.finished:
                return
            await changed.wait()

    async def close(self) -> None:
        """Stop all work."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(self, job: Job, work: Work, on_progress: OnProgress) -> None:
        try:
            job.result = await work(on_progress)
            self._finish(job, "succeeded")
        except ScoringError as error:
            job.error = error
            self._finish(job, "failed")
        except asyncio.CancelledError:
            self._finish(job, "cancelled")
        except Exception as error:
            log_bug(error, job_id=job.id)
            job.error = InternalError("an unexpected error; the log has it under the job's id")
            self._finish(job, "failed")

    def _finish(self, job: Job, state: JobState) -> None:
        """Enter the last state. Jobs are kept by when they ended, not by when they were submitted."""
        self._jobs.move_to_end(job.id)
        job.finish(state)

    def _end(self, job: Job, *, was_admitted: bool) -> None:
        """Its task is over."""
        del self._tasks[job.id]
        if not job.finished:  # cancelled before it began
            self._finish(job, "cancelled")
        if was_admitted:
            self._on_end(job)

    def _forget_old(self) -> None:
        finished = [job for job in self._jobs.values() if job.finished_at is not None]
        now = datetime.now(UTC)
        for index, job in enumerate(reversed(finished)):
            assert job.finished_at is not None
            too_old = (now - job.finished_at).total_seconds() > self._max_age_seconds
            if too_old or index >= self._max_finished:
                del self._jobs[job.id]


def _seconds_to_download(progress: Progress) -> float:
    """0.0 where nothing is known to be downloading."""
    if progress.phase != "downloading" or not progress.bytes_total or not progress.bytes_per_second:
        return 0.0
    return (progress.bytes_total - (progress.bytes_done or 0)) / progress.bytes_per_second
