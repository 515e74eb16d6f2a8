"""The jobs in the database: every statement about them.

A job that has not ended belongs to the service that has its lease: an owner, who renews it, and an end. A job whose
lease has ended is free: whoever claims it first goes on with it. Only the owner may write what came of a job, and
only while nobody has ended it, so a job has one result.
"""

import json
import time
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, get_args

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    and_,
    bindparam,
    delete,
    func,
    insert,
    not_,
    null,
    or_,
    select,
    union_all,
    update,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import Double

from service.errors import IdempotencyKeyReused, JobNotFound
from service.jobs.database import Database
from service.jobs.job import EVENTS_PER_ATTEMPT, End, Job, JobState, is_job_id
from service.jobs.schema import jobs, screen_keys
from service.jobs.stored_outcome import (
    error_from,
    error_to_dict,
    progress_from_json,
    progress_to_json,
    result_from_json,
    result_to_json,
)

KEY_SECONDS = 86_400.0
"""How long an idempotency key is kept after its job has ended."""

_UNFINISHED = jobs.c.finished_at.is_(None)
_NEXT_ATTEMPT = (jobs.c.event // EVENTS_PER_ATTEMPT + 1) * EVENTS_PER_ATTEMPT


class _Clock(FunctionElement[float]):
    """The database's own clock, in seconds since 1970: the clocks of two services may differ, a lease's must not."""

    type = Double()
    inherit_cache = True


@compiles(_Clock, "postgresql")
def _clock_of_postgresql(element: Any, compiler: Any, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(_Clock, "sqlite")
def _clock_of_sqlite(element: Any, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose job it is and what it asks, as hashes that only this service's key makes."""

    owner: str
    body_hash: str
    idempotency_key: str | None = None


class KeyTaken(Exception):
    """Another job has the idempotency key."""


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that this service goes on with."""

    job: Job
    request: bytes = field(repr=False)
    """Sealed."""


class JobStore:
    """The jobs as one service sees them. Every method raises InsufficientStorage or OutOfResources, as the database."""

    def __init__(self, database: Database, owner: str, *, lease_seconds: float) -> None:
        """`owner` names this process in its leases."""
        self._database = database
        self._owner = owner
        self._lease_seconds = lease_seconds
        self._is_mine = and_(_UNFINISHED, jobs.c.lease_owner == owner)

    async def insert(self, job: Job, identity: Identity, request: bytes) -> None:
        """Add a job of this service, durably. Raises KeyTaken."""
        row = {
            "id": job.id,
            "kind": job.kind,
            "state": job.state,
            "num_models": job.num_models,
            "owner": identity.owner,
            "idempotency_key": identity.idempotency_key,
            "body_hash": identity.body_hash,
            "request": request,
            "created_at": job.created_at.timestamp(),
            "deadline": job.deadline,
            "lease_owner": self._owner,
            "event": job.event,
        }
        statement = insert(jobs).values(**row, lease_until=self._new_lease_end())
        try:
            await self._database.run(lambda connection: connection.execute(statement))
        except IntegrityError as error:
            raise KeyTaken from error

    async def find(self, identity: Identity) -> str | None:
        """The id of the job that has this idempotency key.

        Raises IdempotencyKeyReused when it asked something else, or when a screen has the key.
        """
        of_jobs = select(jobs.c.id, jobs.c.body_hash).where(
            jobs.c.owner == identity.owner, jobs.c.idempotency_key == identity.idempotency_key
        )
        of_screens = select(null(), screen_keys.c.body_hash).where(
            screen_keys.c.owner == identity.owner,
            screen_keys.c.idempotency_key == identity.idempotency_key,
            screen_keys.c.created_at >= time.time() - KEY_SECONDS,
        )
        found = await self._database.read(
            lambda connection: connection.execute(union_all(of_jobs, of_screens)).first()
        )
        if found is None:
            return None
        if found.body_hash != identity.body_hash:
            raise IdempotencyKeyReused("this Idempotency-Key was sent with another request before")
        return str(found.id)

    async def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        statement = select(jobs).where(jobs.c.id == job_id)

        def work(connection: Connection) -> Job | None:
            row = connection.execute(statement).one_or_none()
            return None if row is None else _job_of(row)

        job = await self._database.read(work) if is_job_id(job_id) else None
        if job is None:
            raise JobNotFound("there is no job of this id, or its result is no longer kept")
        return job

    async def num_by_state(self) -> dict[JobState, int]:
        """How many jobs there are in each state, 0 included."""
        statement = select(jobs.c.state, func.count().label("number")).group_by(jobs.c.state)

        def work(connection: Connection) -> dict[str, int]:
            return {row.state: row.number for row in connection.execute(statement)}

        found = await self._database.read(work)
        return {state: found.get(state, 0) for state in get_args(JobState)}

    async def page(
        self, state: JobState | None, limit: int, after: str | None, own: Iterable[Job] = ()
    ) -> list[Job]:
        """The newest jobs first. `own` are known better here than in the database."""
        statement = select(jobs).order_by(jobs.c.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(jobs.c.id < after)
        if state is not None:
            known = {job.id: job.state for job in own}
            of_state = [job_id for job_id, known_state in known.items() if known_state == state]
            as_stored = and_(jobs.c.state == state, jobs.c.id.not_in(known))
            statement = statement.where(or_(as_stored, jobs.c.id.in_(of_state)))
        return await self._database.read(
            lambda connection: [_job_of(row) for row in connection.execute(statement)]
        )

    async def cancel(self, job_id: str) -> None:
        """End the job, durably, whoever runs it; nothing happens to one that has ended, or that is not there."""
        if not is_job_id(job_id):
            return
        values = _ended("cancelled", datetime.now(UTC)) | {"event": _NEXT_ATTEMPT, "idempotency_key": None}
        statement = update(jobs).where(jobs.c.id == job_id, _UNFINISHED).values(values)
        await self._database.run(lambda connection: connection.execute(statement))

    async def finish(self, job: Job, end: End) -> bool:
        """Write how a job of this service has ended, durably; False if the job is no longer this service's.

        Trouble that may pass is no answer to keep: the idempotency key is free for another try.
        """
        values = _ended(end.state, end.finished_at) | {
            "event": end.event,
            "progress": progress_to_json(job.data, job.models),
            "result": None if end.result is None else result_to_json(end.result),
            "error": None if end.error is None else json.dumps(error_to_dict(end.error)),
        }
        if end.error is not None and end.error.retryable:
            values["idempotency_key"] = None
        statement = update(jobs).where(jobs.c.id == job.id, self._is_mine).values(values)
        return await self._database.run(lambda connection: connection.execute(statement).rowcount) == 1

    async def renew(self, own: Collection[Job], changed: Collection[Job]) -> set[str]:
        """Renew the leases of jobs, and write the progress of those that changed; the ids of those still owned."""
        lease = (
            update(jobs)
            .where(jobs.c.id.in_([job.id for job in own]), self._is_mine)
            .values(lease_until=self._new_lease_end())
            .returning(jobs.c.id)
        )
        progress = (
            update(jobs)
            .where(jobs.c.id == bindparam("job_id"), self._is_mine)
            .values(
                state=bindparam("new_state"), event=bindparam("new_event"), progress=bindparam("new_progress")
            )
        )
        rows = [
            {
                "job_id": job.id,
                "new_state": job.state,
                "new_event": job.event,
                "new_progress": progress_to_json(job.data, job.models),
            }
            for job in changed
        ]

        def work(connection: Connection) -> set[str]:
            owned = set(connection.scalars(lease)) if own else set()
            if rows:
                connection.execute(progress, rows)
            return owned

        return await self._database.run(work)

    async def release(self) -> None:
        """Give up the jobs of this service: they are free for whoever claims them."""
        statement = update(jobs).where(self._is_mine).values(lease_until=0.0)
        await self._database.run(lambda connection: connection.execute(statement))

    async def claim(self, limit: int, *, except_for: Collection[str]) -> list[ClaimedJob]:
        """Take over the oldest jobs that are free; not those that are running here, whose lease may be renewed late."""
        is_free = jobs.c.lease_until < _Clock()
        if not self._database.is_shared:  # the others that it was leased to are gone
            is_free = or_(is_free, jobs.c.lease_owner != self._owner)
        is_other = jobs.c.id.not_in(except_for)
        free = select(jobs.c.id).where(_UNFINISHED, is_free, is_other).order_by(jobs.c.id).limit(limit)
        if not await self._database.read(lambda connection: connection.scalars(free).all()):
            return []
        values = {"lease_owner": self._owner, "lease_until": self._new_lease_end(), "event": _NEXT_ATTEMPT}
        claiming = (
            update(jobs)
            .where(jobs.c.id.in_(free.with_for_update(skip_locked=True)))
            .values(values)
            .returning(*jobs.c)
        )
        rows = await self._database.run(lambda connection: connection.execute(claiming).all())
        return [ClaimedJob(_job_of(row), row.request) for row in sorted(rows, key=lambda row: row.id)]

    async def forget_old(self, *, max_finished: int, max_age_seconds: float) -> None:
        """Delete the jobs that ended long ago, or before many others; not while their idempotency key is kept."""
        now = time.time()
        key_is_kept = and_(jobs.c.idempotency_key.is_not(None), jobs.c.finished_at > now - KEY_SECONDS)
        finished = select(jobs.c.id).where(jobs.c.finished_at.is_not(None))
        too_many = finished.order_by(jobs.c.finished_at.desc(), jobs.c.id.desc()).offset(max_finished)
        too_old = jobs.c.finished_at < now - max_age_seconds
        old = delete(jobs).where(or_(too_old, jobs.c.id.in_(too_many)), not_(key_is_kept))
        keys = update(jobs).where(jobs.c.finished_at <= now - KEY_SECONDS).values(idempotency_key=None)

        def work(connection: Connection) -> None:
            connection.execute(old)
            connection.execute(keys.where(jobs.c.idempotency_key.is_not(None)))

        await self._database.run(work)

    def _new_lease_end(self) -> ColumnElement[float]:
        return _Clock() + self._lease_seconds


def _ended(state: JobState, finished_at: datetime) -> dict[str, Any]:
    """What every end of a job changes: the request with its keys is wiped."""
    return {
        "state": state,
        "finished_at": finished_at.timestamp(),
        "request": None,
        "lease_owner": None,
        "lease_until": None,
    }


def _job_of(row: Row[Any]) -> Job:
    data, models = (None, []) if row.progress is None else progress_from_json(row.progress)
    return Job(
        kind=row.kind,
        num_models=row.num_models,
        deadline=row.deadline,
        id=row.id,
        state=row.state,
        created_at=datetime.fromtimestamp(row.created_at, UTC),
        finished_at=None if row.finished_at is None else datetime.fromtimestamp(row.finished_at, UTC),
        event=row.event,
        data=data,
        models=models,
        result=None if row.result is None else result_from_json(row.result),
        error=None if row.error is None else error_from(json.loads(row.error)),
    )
