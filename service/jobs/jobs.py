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
from datetime import UTC, datetime

from service.errors import (
    Draining,
    Interrupted,
    ServiceTrouble,
)
from service.jobs.database import Database
from service.jobs.job import End, Job, JobKind, JobState, Result
from service.jobs.job_store import Identity, JobStore, KeyTaken
from service.jobs.running_jobs import Admission, RunningJobs, Scorer
from service.jobs.state_key import StateKey
from service.jobs.stored_request import request_to_bytes
from service.jobs.upkeep import Retention, Upkeep
from service.scoring.competition import Competition


class JobService:
    """The jobs of this service, and those in its database that nobody else runs."""

    def __init__(
        self,
        database: Database,
        state_key: StateKey,
        scorer: Scorer,
        admission: Admission,
        *,
        retention: Retention | None = None,
        on_end: Callable[[Job], None] = lambda job: None,
        lease_seconds: float = 15.0,
        update_seconds: float = 1.0,
        silence_seconds: float = 15.0,
    ) -> None:
        """`update_seconds`: between two writes of progress, and two reads where another service runs the job.

        `on_end` is called with each job that has ended in this process.
        `silence_seconds`: after so long without a change, followers are told that there is none.
        """
        self._store = JobStore(database, owner=secrets.token_hex(8), lease_seconds=lease_seconds)
        self._state_key = state_key
        self._admission = admission
        self._update_seconds = update_seconds
        self._silence_seconds = silence_seconds
        self._running = RunningJobs(
            self._store,
            scorer,
            admission,
            outlive_this_process=database.is_kept,
            on_end=on_end,
            retry_seconds=update_seconds,
        )
        self.upkeep = Upkeep(
            self._store,
            self._running,
            state_key,
            admission,
            retention=retention or Retention(),
            lease_seconds=lease_seconds,
            every_seconds=update_seconds,
        )
        self._upkeep_task: asyncio.Task[None] | None = None

    @property
    def num_running(self) -> int:
        """Jobs that this process works on."""
        return len(self._running)

    @property
    def num_changes(self) -> int:
        """Grows when the list of jobs changes by what this process does."""
        return self._running.num_changes

    def own_jobs(self) -> list[Job]:
        """The jobs that this process works on, as they are now; the newest first."""
        return sorted(
            (running.job for running in self._running.stored()), key=lambda job: job.id, reverse=True
        )

    def start(self) -> None:
        """Begin to take over jobs, to renew leases and to forget old jobs."""
        self._upkeep_task = asyncio.create_task(self.upkeep.run())

    async def stop(self) -> None:
        """Stop working, and write nothing more. The leases of what has not ended stay, until their time is over."""
        self._running.left_behind.set()
        if self._upkeep_task is not None:
            self._upkeep_task.cancel()
            await asyncio.wait([self._upkeep_task])
        await self._running.stop_all()

    async def close(self) -> None:
        """Stop working. What has not ended stays in the database, free for the next start."""
        await self.stop()
        with contextlib.suppress(ServiceTrouble):
            await self._store.release()

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
        running = self._running.begin(job, competition)
        try:
            await self._running.wait_until_admitted(running)
            await self._store.insert(job, identity, self._state_key.seal(request, job.id))
        except KeyTaken:
            await running.stop()
            existing = await self._store.find(identity)
            if existing is None:  # its job has just failed
                raise Interrupted("the job that had this Idempotency-Key has just ended") from None
            return await self.get(existing)
        except BaseException:  # the client will never learn the job's id
            await running.stop()
            raise
        self._running.mark_stored(running)
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
        self._running.num_changes += 1
        running = self._running.get(job_id)
        if running is not None and job.state == "cancelled":
            running.job.become(End("cancelled", job.event, finished_at=job.finished_at or datetime.now(UTC)))
            await running.stop()
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
            if not is_running_here and (self._running.left_behind.is_set() or self._admission.draining):
                return
            left = quiet_since + self._silence_seconds - time.monotonic()
            if left <= 0:
                quiet_since = time.monotonic()
                yield None
                continue
            if is_running_here:
                await _wait_for(changed, left)
            else:
                await _wait_for(self._running.left_behind, min(left, self._update_seconds))
            job = job if job.finished else await self.get(job_id)

    def _identity(
        self, kind: JobKind, request: bytes, caller: bytes, idempotency_key: str | None
    ) -> Identity:
        owner = self._state_key.hash("owner", caller)
        body = self._state_key.hash("body", kind.encode() + b"\0" + request)
        key = None if idempotency_key is None else self._state_key.hash("key", idempotency_key.encode())
        return Identity(owner, body, key)


async def _wait_for(event: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
