"""Long work: requests that go on in the background, and through restarts, while their callers ask for progress.

submit ──► the scorer admits it, or refuses it at once ──► its row is committed ──► 202
             │
             ├─ every few seconds: renew the leases, write the progress, take over jobs that nobody runs any more
             ▼
           its end is committed ──► followers and callers see it

What a caller sees has been committed, the progress of a running job excepted. A job that this process leaves behind,
killed or stopped, is gone on with by the next start, or by another service on the same database.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import structlog

from service import tracing
from service.errors import (
    DeadlineExceeded,
    Draining,
    InternalError,
    Interrupted,
    QueueFull,
    ScoringError,
    ServiceTrouble,
)
from service.jobs.database import Database
from service.jobs.job import End, Job, JobKind, JobState, Result
from service.jobs.job_store import ClaimedJob, Identity, JobStore, KeyTaken
from service.jobs.state_key import StateKey, WrongKey
from service.jobs.stored_request import request_from_bytes, request_to_bytes
from service.log import log_bug
from service.scoring.competition import Competition
from service.scoring.results import CompetitionResult, Evaluation, OnProgress, Progress

_FORGET_SECONDS = 60.0
"""Between two looks for jobs that are no longer kept."""

log = structlog.get_logger(__name__)


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


@dataclass(frozen=True, slots=True)
class Retention:
    """Which of the jobs that have ended are kept. Both count from their end."""

    max_finished: int = 1000
    max_age_seconds: float = 86_400.0


@dataclass(eq=False, slots=True)
class _Running:
    """A job that this process works on."""

    job: Job
    task: asyncio.Task[None] | None = None
    admitted: asyncio.Event = field(default_factory=asyncio.Event)
    refusal: ScoringError | None = None
    """Why it was not admitted."""
    is_stored: asyncio.Event = field(default_factory=asyncio.Event)
    written_event: int = 0
    """The event whose progress the database has."""


class JobService:
    """The jobs of this service, and those in its database that nobody else runs."""

    def __init__(
        self,
        database: Database,
        state_key: StateKey,
        scorer: Scorer,
        admission: Admission,
        *,
        retention: Retention = Retention(),  # it is frozen
        on_end: Callable[[Job], None] = lambda job: None,
        lease_seconds: float = 15.0,
        update_seconds: float = 1.0,
        silence_seconds: float = 15.0,
    ) -> None:
        """`update_seconds`: between two writes of progress, and two reads where another service runs the job.

        `on_end` is called with each job that has ended in this process.
        `silence_seconds`: after so long without a change, followers are told that there is none.
        """
        self._outlives_this_process = database.is_kept
        self._store = JobStore(database, owner=secrets.token_hex(8), lease_seconds=lease_seconds)
        self._state_key = state_key
        self._scorer = scorer
        self._admission = admission
        self._retention = retention
        self._on_end = on_end
        self._lease_seconds = lease_seconds
        self._update_seconds = update_seconds
        self._silence_seconds = silence_seconds
        self._running: dict[str, _Running] = {}
        self._upkeep: asyncio.Task[None] | None = None
        self._next_renewal = 0.0
        self._next_forgetting = 0.0
        self.num_changes = 0
        """Grows when the list of jobs changes by what this process does."""
        self._left_behind = asyncio.Event()
        """Set once a job is left for the next start: whoever follows one should ask again then."""

    @property
    def num_running(self) -> int:
        """Jobs that this process works on."""
        return len(self._running)

    def own_jobs(self) -> list[Job]:
        """The jobs that this process works on, as they are now; the newest first."""
        running = [running.job for running in self._running.values() if running.is_stored.is_set()]
        return sorted(running, key=lambda job: job.id, reverse=True)

    def start(self) -> None:
        """Begin to take over jobs, to renew leases and to forget old jobs."""
        self._upkeep = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        """Stop working. What has not ended stays in the database, free for the next start."""
        self._left_behind.set()
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait([self._upkeep])
        left = list(self._running.values())
        await _stop([running.task for running in left if running.task is not None])
        with contextlib.suppress(ServiceTrouble):
            await self._store.release()
        for running in left:
            running.job.notify_followers()

    async def submit(
        self,
        kind: JobKind,
        competition: Competition,
        *,
        caller: bytes = b"",
        idempotency_key: str | None = None,
    ) -> Job:
        """Start a job; returns once it is admitted and durable. With an idempotency key, the job that has it already.

        `caller` is what tells whose the idempotency key is. Raises the error that refused the request,
        IdempotencyKeyReused, and InsufficientStorage or OutOfResources when the database cannot be used.
        """
        request = request_to_bytes(competition)
        identity = self._identity(kind, request, caller, idempotency_key)
        if idempotency_key is not None and (existing := await self._store.find(identity)) is not None:
            return await self.get(existing)
        job = Job(kind, len(competition.models), deadline=time.time() + self._admission.timeout_seconds)
        running = self._begin(job, competition)
        try:
            await self._admit(running)
            await self._store.insert(job, identity, self._state_key.seal(request, job.id))
        except KeyTaken:
            await self._abandon(running)
            existing = await self._store.find(identity)
            if existing is None:  # its job has just failed
                raise Interrupted("the job that had this Idempotency-Key has just ended") from None
            return await self.get(existing)
        except BaseException:  # the client will never learn the job's id
            await self._abandon(running)
            raise
        running.is_stored.set()
        self.num_changes += 1
        return job

    async def get(self, job_id: str) -> Job:
        """Raises JobNotFound, and InsufficientStorage or OutOfResources when the database cannot be used."""
        running = self._running.get(job_id)
        if running is not None and running.is_stored.is_set():
            return running.job
        return await self._store.get(job_id)

    async def num_by_state(self) -> dict[JobState, int]:
        """How many jobs are kept in each state, 0 included. Raises as `get`, but for JobNotFound."""
        return await self._store.num_by_state()

    async def page(
        self, *, state: JobState | None = None, limit: int, after: str | None = None
    ) -> Sequence[Job]:
        """At most `limit` jobs, the newest first; with `after`, the id of a job, only those older than it."""
        own = {job.id: job for job in self.own_jobs()}
        found = await self._store.page(state, limit, after, own.values())
        return [own.get(job.id, job) for job in found]

    async def cancel(self, job_id: str) -> Job:
        """Stop a job, durably; returns when its work here has stopped. A finished job stays what it is."""
        await self._store.cancel(job_id)
        job = await self._store.get(job_id)
        self.num_changes += 1
        running = self._running.get(job_id)
        if running is not None and job.state == "cancelled":
            running.job.become(End("cancelled", job.event, finished_at=job.finished_at or datetime.now(UTC)))
            await self._abandon(running)
        elif running is not None and running.task is not None:  # it has just ended
            await asyncio.wait([running.task])
        return job

    async def wait(self, job_id: str) -> Result:
        """The result of a job once it has one. Raises its error, Interrupted if it is cancelled, or Draining."""
        async for job in self.follow(job_id):
            if job is None or not job.finished:
                continue
            if job.error is not None:
                raise job.error
            if job.result is None:
                raise Interrupted("the job was cancelled before it had a result")
            return job.result
        raise Draining("the service stops before the work is done, which the next start goes on with")

    async def follow(self, job_id: str, after: int | None = None) -> AsyncGenerator[Job | None, None]:
        """The job at once and after every change, up to its end; None after some time without a change.

        `after` is the number of an event that the caller has: only later ones are given. The stream also ends when
        this service stops.
        """
        job = await self.get(job_id)
        quiet_since = time.monotonic()
        while True:
            changed = job.changed
            if after is None or job.event > after or job.finished:
                after, quiet_since = job.event, time.monotonic()
                yield job
            if job.finished:
                return
            is_running_here = job_id in self._running
            if not is_running_here and (self._left_behind.is_set() or self._admission.draining):
                return
            left = quiet_since + self._silence_seconds - time.monotonic()
            if left <= 0:
                quiet_since = time.monotonic()
                yield None
                continue
            if is_running_here:
                await _wait_for(changed, left)
            else:
                await _wait_for(self._left_behind, min(left, self._update_seconds))
            job = job if job.finished else await self.get(job_id)

    async def forget_old(self) -> None:
        """Delete the jobs that are no longer kept."""
        await self._store.forget_old(
            max_finished=self._retention.max_finished, max_age_seconds=self._retention.max_age_seconds
        )

    def _identity(
        self, kind: JobKind, request: bytes, caller: bytes, idempotency_key: str | None
    ) -> Identity:
        owner = self._state_key.hash("owner", caller)
        body = self._state_key.hash("body", kind.encode() + b"\0" + request)
        key = None if idempotency_key is None else self._state_key.hash("key", idempotency_key.encode())
        return Identity(owner, body, key)

    def _begin(self, job: Job, competition: Competition) -> _Running:
        running = _Running(job, written_event=job.event)
        self._running[job.id] = running
        running.task = asyncio.create_task(self._run(running, competition))
        running.task.add_done_callback(lambda _: self._drop(running))
        return running

    def _drop(self, running: _Running) -> None:
        self._running.pop(running.job.id, None)
        running.job.notify_followers()
        assert running.task is not None
        if not running.task.cancelled() and isinstance(bug := running.task.exception(), Exception):
            log_bug(bug, job_id=running.job.id)

    async def _admit(self, running: _Running) -> None:
        """Wait until the scorer has admitted the job. Raises the error that refused it."""
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

    async def _abandon(self, running: _Running) -> None:
        """Stop the work on a job whose end is no longer this task's to write."""
        assert running.task is not None
        await _stop([running.task])

    async def _run(self, running: _Running, competition: Competition) -> None:
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

    async def _work(self, running: _Running, competition: Competition) -> Result:
        job = running.job
        seconds_left = job.deadline - time.time()
        if seconds_left <= 0:
            raise DeadlineExceeded(f"the request took longer than {self._admission.timeout_seconds:g} s")

        def on_progress(progress: Progress) -> None:
            running.admitted.set()
            job.note(progress)

        work = self._scorer.evaluate if job.kind == "eval" else self._scorer.score
        return await work(competition, on_progress, timeout_seconds=seconds_left)

    def _is_left(self, running: _Running, error: ScoringError) -> bool:
        """Whether the error is none of the job's: it was refused before it began, or is left for another start."""
        if isinstance(error, Draining) and self._outlives_this_process:
            self._left_behind.set()
            return True
        if running.admitted.is_set():
            return False
        return not running.is_stored.is_set() or isinstance(error, QueueFull)

    async def _finish(self, running: _Running, outcome: Result | ScoringError) -> None:
        """Commit how the job ended, then tell its followers. While the database is in trouble, it is tried again."""
        job = running.job
        await running.is_stored.wait()
        while True:
            end = _end_of(job, outcome)
            try:
                is_written = await self._store.finish(job, end)
            except ServiceTrouble:
                await asyncio.sleep(self._update_seconds)
                continue
            if is_written:
                job.become(end)
                self.num_changes += 1
                self._on_end(job)
            return  # a job that was cancelled or taken over meanwhile has another end

    async def _keep_up(self) -> None:
        while True:
            try:
                await self._renew()
                await self._take_over()
                await self._forget_at_times()
            except ServiceTrouble:  # the database has logged it
                self._next_forgetting = (
                    0.0  # the next round tries to write, and so sees whether it has passed
                )
            except Exception as error:
                log_bug(error)
            await asyncio.sleep(self._update_seconds)

    async def _renew(self) -> None:
        """Write what has changed; renew the leases in time; stop the work on jobs that are no longer this service's."""
        own = [running for running in self._running.values() if running.is_stored.is_set()]
        changed = [running for running in own if running.job.event != running.written_event]
        is_due = time.monotonic() >= self._next_renewal
        if not own or not (changed or is_due):
            return
        events = {running.job.id: running.job.event for running in changed}
        owned = await self._store.renew(
            [running.job for running in own], [running.job for running in changed]
        )
        self._next_renewal = time.monotonic() + self._lease_seconds / 3
        for running in own:
            running.written_event = events.get(running.job.id, running.written_event)
            if running.job.id not in owned and not running.job.finished and running.task is not None:
                running.task.cancel()

    async def _take_over(self) -> None:
        """Go on with jobs that nobody runs, as far as there is room."""
        room = self._admission.num_free_places
        if room <= 0:
            return
        for claimed in await self._store.claim(room, except_for=list(self._running)):
            await self._resume(claimed)

    async def _resume(self, claimed: ClaimedJob) -> None:
        job = claimed.job
        try:
            competition = request_from_bytes(self._state_key.open(claimed.request, job.id))
        except WrongKey:
            log.error("a job cannot be gone on with: its request is sealed with another key", job_id=job.id)
            error = Interrupted("the service was started again without the key of its stored requests")
            await self._store.finish(job, _end_of(job, error))
            return
        job.state = "queued"
        log.info("going on with a job", job_id=job.id)
        self._begin(job, competition).is_stored.set()
        self.num_changes += 1

    async def _forget_at_times(self) -> None:
        if time.monotonic() >= self._next_forgetting:
            await self.forget_old()
            self._next_forgetting = time.monotonic() + _FORGET_SECONDS


def _end_of(job: Job, outcome: Result | ScoringError) -> End:
    if isinstance(outcome, ScoringError):
        return End("failed", job.event + 1, error=outcome)
    return End("succeeded", job.event + 1, result=outcome)


async def _stop(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
