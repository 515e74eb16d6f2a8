"""What a service does for jobs every few seconds: renew leases, take over what nobody runs, forget what is old."""

import asyncio
import time
from dataclasses import dataclass

import structlog

from service.errors import Interrupted, ServiceTrouble
from service.jobs.job_store import ClaimedJob, JobStore
from service.jobs.running_jobs import Admission, RunningJobs, end_of
from service.jobs.state_key import StateKey, WrongKey
from service.jobs.stored_request import request_from_bytes
from service.log import log_bug

_FORGET_SECONDS = 60.0
"""Between two looks for jobs that are no longer kept."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Retention:
    """Which of the jobs that have ended are kept. Both count from their end."""

    max_finished: int = 1000
    max_age_seconds: float = 86_400.0


class Upkeep:
    """Keeps a service's jobs its own, and takes over those of a service that is gone."""

    def __init__(
        self,
        store: JobStore,
        running: RunningJobs,
        state_key: StateKey,
        admission: Admission,
        *,
        retention: Retention,
        lease_seconds: float,
        every_seconds: float,
    ) -> None:
        self._store = store
        self._running = running
        self._state_key = state_key
        self._admission = admission
        self._retention = retention
        self._lease_seconds = lease_seconds
        self._every_seconds = every_seconds
        self._next_renewal = 0.0
        self._next_forgetting = 0.0

    async def run(self) -> None:
        """For ever; trouble of the database is waited out."""
        while True:
            try:
                await self._renew()
                await self._take_over()
                await self._forget_at_times()
            except ServiceTrouble:
                # The database has logged it; to write in the next round shows whether it has passed.
                self._next_forgetting = 0.0
            except Exception as error:
                log_bug(error)
            await asyncio.sleep(self._every_seconds)

    async def forget_old(self) -> None:
        """Delete the jobs that are no longer kept."""
        await self._store.forget_old(
            max_finished=self._retention.max_finished, max_age_seconds=self._retention.max_age_seconds
        )

    async def _renew(self) -> None:
        """Write what has changed; renew the leases in time; stop the work on jobs that are no longer this service's."""
        own = self._running.stored()
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
        for claimed in await self._store.claim(room, except_for=self._running.ids()):
            await self._resume(claimed)

    async def _resume(self, claimed: ClaimedJob) -> None:
        job = claimed.job
        try:
            competition = request_from_bytes(self._state_key.open(claimed.request, job.id))
        except WrongKey:
            log.error("a job cannot be gone on with: its request is sealed with another key", job_id=job.id)
            error = Interrupted("the service was started again without the key of its stored requests")
            await self._store.finish(job, end_of(job, error))
            return
        job.state = "queued"
        log.info("going on with a job", job_id=job.id)
        self._running.mark_stored(self._running.begin(job, competition))

    async def _forget_at_times(self) -> None:
        if time.monotonic() >= self._next_forgetting:
            await self.forget_old()
            self._next_forgetting = time.monotonic() + _FORGET_SECONDS
