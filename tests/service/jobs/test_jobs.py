"""Jobs: states, progress, ends, restarts, several services, and what is forgotten. On SQLite and on PostgreSQL."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import select, update

from service.errors import (
    IdempotencyKeyReused,
    InternalError,
    Interrupted,
    JobNotFound,
    NoWorker,
    OutOfResources,
    QueueFull,
    ScoringError,
    WeightsInvalid,
)
from service.jobs.database import Database, in_memory_database, postgres_database
from service.jobs.job import End, Job
from service.jobs.jobs import JobService
from service.jobs.schema import jobs as jobs_table
from service.jobs.state_key import StateKey
from service.jobs.upkeep import Retention
from service.scoring.results import Evaluation, Progress
from tests.postgres import Proxy, url_of
from tests.postgres import postgres_database as new_postgres_database
from tests.service.jobs.databases import OpenDatabase
from tests.service.jobs.scripted_scorer import ScriptedScorer, competition, evaluation

QUICK: dict[str, Any] = {"lease_seconds": 0.5, "update_seconds": 0.02, "silence_seconds": 60.0}
KEY = StateKey(bytes(32))


@dataclass
class Service:
    """One service over a database."""

    jobs: JobService
    database: Database
    scorer: ScriptedScorer = field(default_factory=ScriptedScorer)

    def end_all(self) -> None:
        self.scorer.may_end.set()


@asynccontextmanager
async def service_on(
    database: Database, scorer: ScriptedScorer | None = None, key: StateKey = KEY, **options: Any
) -> AsyncIterator[Service]:
    scorer = scorer or ScriptedScorer()
    await database.start()
    jobs = JobService(database, key, scorer, scorer.scheduler, **{**QUICK, **options})
    jobs.start()
    try:
        yield Service(jobs, database, scorer)
    finally:
        await jobs.close()
        await database.close()


async def die(service: Service) -> None:
    """What a kill -9 leaves: nothing is written any more, and the leases stay."""
    await service.jobs.stop()
    await service.database.close()


@pytest.fixture
async def service(open_database: OpenDatabase) -> AsyncIterator[Service]:
    async with service_on(open_database()) as running:
        yield running


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():
            await asyncio.sleep(0.01)


async def finished(service: Service, job_id: str) -> Job:
    async def has_ended() -> bool:
        return (await service.jobs.get(job_id)).finished

    await until(has_ended)
    return await service.jobs.get(job_id)


def same(found: object, expected: Evaluation) -> bool:
    return isinstance(found, Evaluation) and repr(found) == repr(expected)


async def test_a_job_has_its_result_to_the_last_bit(service: Service) -> None:
    job = await service.jobs.submit("eval", competition(seed=7))
    assert (job.state, job.finished) == ("running", False)
    service.end_all()
    ended = await finished(service, job.id)
    assert (ended.state, ended.error) == ("succeeded", None)
    assert same(ended.result, evaluation(seed=7))
    assert isinstance(ended.result, Evaluation)
    assert ended.result.result.embedding.tobytes() == evaluation(seed=7).result.embedding.tobytes()


async def test_a_job_may_fail(service: Service) -> None:
    service.scorer.error = WeightsInvalid("no header", model_index=0)
    service.end_all()
    job = await service.jobs.submit("score", competition(num_models=2))
    ended = await finished(service, job.id)
    assert ended.state == "failed"
    assert isinstance(ended.error, WeightsInvalid)
    assert (ended.error.detail, ended.error.fault, ended.error.model_index) == ("no header", "model_owner", 0)


async def test_a_bug_is_an_internal_error(service: Service) -> None:
    service.scorer.error = ZeroDivisionError()
    service.end_all()
    job = await service.jobs.submit("eval", competition())
    error = (await finished(service, job.id)).error
    assert error is not None
    assert error.code == "internal-error"


async def test_a_bug_before_admission_refuses_the_job(service: Service) -> None:
    service.scorer.refusal = ZeroDivisionError()
    with pytest.raises(InternalError):
        await service.jobs.submit("eval", competition())
    assert await service.jobs.page(limit=10) == []


async def test_a_refused_job_is_refused_at_once_and_not_kept(service: Service) -> None:
    service.scorer.refusal = QueueFull("full", retry_after_seconds=1.0)
    with pytest.raises(QueueFull):
        await service.jobs.submit("eval", competition())
    assert await service.jobs.page(limit=10) == []
    assert service.jobs.num_running == 0


async def test_followers_see_changes_and_the_end(service: Service) -> None:
    job = await service.jobs.submit("eval", competition())
    seen: list[tuple[str, int]] = []

    async def follow() -> None:
        async for found in service.jobs.follow(job.id):
            assert found is not None
            seen.append((found.state, found.event))

    following = asyncio.create_task(follow())
    await asyncio.sleep(0.05)
    service.end_all()
    await following
    assert [state for state, _ in seen] == ["running", "succeeded"]
    assert seen[0][1] < seen[1][1]


async def test_a_follower_that_knows_an_event_gets_later_ones_alone(service: Service) -> None:
    job = await service.jobs.submit("eval", competition())
    following = service.jobs.follow(job.id, after=job.event)
    waiting = asyncio.ensure_future(anext(following))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    service.end_all()
    end = await waiting
    assert end is not None
    assert end.state == "succeeded"


async def test_silence_is_told(open_database: OpenDatabase) -> None:
    async with service_on(open_database(), silence_seconds=0.05) as service:
        job = await service.jobs.submit("eval", competition())
        following = service.jobs.follow(job.id)
        assert await anext(following) is job
        assert await anext(following) is None
        assert await anext(following) is None
        await following.aclose()


async def test_cancelling_stops_the_work_and_holds_across_a_restart(open_database: OpenDatabase) -> None:
    async with service_on(open_database()) as service:
        job = await service.jobs.submit("eval", competition())
        cancelled = await service.jobs.cancel(job.id)
        assert (cancelled.state, cancelled.error) == ("cancelled", None)
        assert service.jobs.num_running == 0
        assert (await service.jobs.cancel(job.id)).state == "cancelled"
    async with service_on(open_database()) as service:
        await asyncio.sleep(0.1)
        assert (await service.jobs.get(job.id)).state == "cancelled"
        assert service.scorer.begun == []


async def test_a_finished_job_stays_what_it_is(service: Service) -> None:
    service.end_all()
    job = await service.jobs.submit("eval", competition())
    await finished(service, job.id)
    assert (await service.jobs.cancel(job.id)).state == "succeeded"


async def test_what_is_not_there_is_not_found(service: Service) -> None:
    with pytest.raises(JobNotFound):
        await service.jobs.get("0" * 32)
    with pytest.raises(JobNotFound):
        await service.jobs.cancel("0" * 32)


async def test_killed_jobs_are_gone_on_with_under_their_deadline(open_database: OpenDatabase) -> None:
    first = Service(None, open_database())  # type: ignore[arg-type]
    await first.database.start()
    first.jobs = JobService(first.database, KEY, first.scorer, first.scorer.scheduler, **QUICK)
    first.jobs.start()
    job = await first.jobs.submit("score", competition(seed=3, num_models=2))
    await die(first)
    async with service_on(open_database()) as second:
        second.end_all()
        ended = await finished(second, job.id)
        assert ended.state == "succeeded"
        assert second.scorer.begun == [competition(seed=3, num_models=2)]
        assert (ended.created_at, ended.deadline) == (job.created_at, job.deadline)
        (timeout,) = second.scorer.timeouts
        assert timeout is not None
        assert timeout < 60.0
        assert ended.event > job.event


async def test_a_job_that_is_past_its_deadline_ends(open_database: OpenDatabase) -> None:
    async with service_on(open_database()) as service:
        job = await service.jobs.submit("eval", competition())
    database = open_database()
    await database.start()
    await database.run(lambda c: c.execute(update(jobs_table).values(deadline=time.time() - 1)))
    async with service_on(database) as service:
        ended = await finished(service, job.id)
        assert ended.error is not None
        assert ended.error.code == "deadline-exceeded"
        assert service.scorer.begun == []


async def test_a_stopped_service_leaves_its_jobs_to_the_next(open_database: OpenDatabase) -> None:
    async with service_on(open_database(), lease_seconds=600.0) as service:
        job = await service.jobs.submit("eval", competition())
        await service.scorer.scheduler.drain(0.0)
        await service.scorer.scheduler.end_admitted(10.0)
        seen = [found async for found in service.jobs.follow(job.id)]
        assert [found.finished for found in seen if found] == [False]
    async with service_on(open_database(), lease_seconds=600.0) as service:
        service.end_all()
        assert (await finished(service, job.id)).state == "succeeded"


async def test_where_nothing_is_kept_a_stop_ends_the_jobs() -> None:
    async with service_on(in_memory_database()) as service:
        job = await service.jobs.submit("eval", competition())
        await service.scorer.scheduler.drain(0.0)
        await service.scorer.scheduler.end_admitted(10.0)
        ended = await finished(service, job.id)
        assert ended.error is not None
        assert ended.error.code == "draining"


async def test_without_its_key_a_job_is_interrupted(open_database: OpenDatabase) -> None:
    async with service_on(open_database()) as service:
        job = await service.jobs.submit("eval", competition())
    async with service_on(open_database(), key=StateKey(b"another key, of 32 bytes or more")) as service:
        ended = await finished(service, job.id)
        assert ended.state == "failed"
        assert isinstance(ended.error, Interrupted)
        assert (ended.error.fault, ended.error.retryable) == ("service", True)


async def test_jobs_wait_for_room_after_a_restart(open_database: OpenDatabase) -> None:
    async with service_on(open_database()) as service:
        ids = [(await service.jobs.submit("eval", competition(seed))).id for seed in range(3)]
    async with service_on(open_database(), ScriptedScorer(queue_size=1)) as service:
        service.end_all()
        ended = [await finished(service, job_id) for job_id in ids]
        assert [job.state for job in ended] == ["succeeded"] * 3
        assert [request.seed for request in service.scorer.begun] == [0, 1, 2]


async def test_the_request_is_wiped_when_the_job_ends(service: Service) -> None:
    async def request_of(job_id: str) -> bytes | None:
        statement = select(jobs_table.c.request).where(jobs_table.c.id == job_id)
        return await service.database.read(lambda c: c.execute(statement).scalar_one())

    first = await service.jobs.submit("eval", competition())
    second = await service.jobs.submit("eval", competition())
    sealed = await request_of(first.id)
    assert sealed is not None
    assert b"canary" not in sealed
    await service.jobs.cancel(first.id)
    service.end_all()
    await finished(service, second.id)
    assert [await request_of(job.id) for job in (first, second)] == [None, None]


async def test_jobs_are_listed_newest_first_by_cursor(service: Service) -> None:
    ids = [(await service.jobs.submit("eval", competition())).id for _ in range(5)]
    await service.jobs.cancel(ids[1])
    pages, after = [], None
    while page := await service.jobs.page(limit=2, after=after):
        pages.append([job.id for job in page])
        after = page[-1].id
    assert pages == [ids[4:2:-1], ids[2:0:-1], ids[:1]]
    assert [job.id for job in await service.jobs.page(state="cancelled", limit=9)] == [ids[1]]
    running = await service.jobs.page(state="running", limit=9)
    assert [job.id for job in running] == [ids[4], ids[3], ids[2], ids[0]]


async def test_finished_jobs_are_bounded_in_number(open_database: OpenDatabase) -> None:
    async with service_on(open_database(), retention=Retention(max_finished=2)) as service:
        long = await service.jobs.submit("eval", competition())
        younger = [await service.jobs.submit("eval", competition()) for _ in range(4)]
        for job in younger:
            await service.jobs.cancel(job.id)
        await service.jobs.upkeep.forget_old()
        assert not (await service.jobs.get(long.id)).finished  # one that has not ended is always there
        service.end_all()
        await finished(service, long.id)
        await service.jobs.upkeep.forget_old()
        kept = [job.id for job in await service.jobs.page(limit=9)]
        assert kept == [younger[3].id, long.id]  # counted from the end


async def test_finished_jobs_are_bounded_in_age(open_database: OpenDatabase) -> None:
    async with service_on(open_database(), retention=Retention(max_age_seconds=0.0)) as service:
        service.end_all()
        kept = await service.jobs.submit("eval", competition(), idempotency_key="k")
        job = await service.jobs.submit("eval", competition())
        for one in (kept, job):
            await finished(service, one.id)
        await service.jobs.upkeep.forget_old()
        with pytest.raises(JobNotFound):
            await service.jobs.get(job.id)
        assert (await service.jobs.get(kept.id)).finished  # its key is kept for a day
        day_ago = update(jobs_table).values(finished_at=time.time() - 86_401)
        await service.database.run(lambda c: c.execute(day_ago))
        await service.jobs.upkeep.forget_old()
        assert await service.jobs.page(limit=9) == []


async def test_the_same_key_and_request_give_the_same_job(open_database: OpenDatabase) -> None:
    async with service_on(open_database()) as service:
        jobs = await asyncio.gather(
            *(service.jobs.submit("eval", competition(), caller=b"a", idempotency_key="k") for _ in range(5))
        )
        assert len({job.id for job in jobs}) == 1
        with pytest.raises(IdempotencyKeyReused):
            await service.jobs.submit("eval", competition(seed=1), caller=b"a", idempotency_key="k")
        with pytest.raises(IdempotencyKeyReused):
            await service.jobs.submit("score", competition(), caller=b"a", idempotency_key="k")
        other = await service.jobs.submit("eval", competition(seed=1), caller=b"b", idempotency_key="k")
        assert other.id != jobs[0].id
        service.end_all()
        await finished(service, jobs[0].id)
        assert service.scorer.num_ended <= 2
    async with service_on(open_database()) as service:
        again = await service.jobs.submit("eval", competition(), caller=b"a", idempotency_key="k")
        assert (again.id, again.state) == (jobs[0].id, "succeeded")
        assert same(await service.jobs.wait(again.id), evaluation())


@pytest.mark.parametrize(
    ("error", "is_kept"), [(NoWorker("none"), False), (WeightsInvalid("no header"), True)]
)
async def test_trouble_that_may_pass_frees_the_key(
    open_database: OpenDatabase, error: ScoringError, is_kept: bool
) -> None:
    async with service_on(open_database()) as service:
        service.end_all()
        service.scorer.error = error
        first = await service.jobs.submit("eval", competition(), idempotency_key="k")
        with pytest.raises(type(error)):
            await service.jobs.wait(first.id)
        service.scorer.error = None
        second = await service.jobs.submit("eval", competition(), idempotency_key="k")
        assert (second.id == first.id) is is_kept


async def test_a_waiting_caller_is_told_that_its_job_was_cancelled(service: Service) -> None:
    job = await service.jobs.submit("eval", competition(), idempotency_key="k")
    waiting = asyncio.create_task(service.jobs.wait(job.id))
    await asyncio.sleep(0.01)
    await service.jobs.cancel(job.id)
    with pytest.raises(Interrupted):
        await waiting


async def lease_end(service: Service, job_id: str) -> float:
    statement = select(jobs_table.c.lease_until).where(jobs_table.c.id == job_id)
    return float(await service.database.read(lambda c: c.execute(statement).scalar_one()))


async def test_several_services_share_a_database() -> None:
    with new_postgres_database() as name:
        async with (
            service_on(postgres_database(url_of(name)), lease_seconds=6.0) as a,
            service_on(postgres_database(url_of(name)), lease_seconds=6.0) as b,
        ):
            job = await a.jobs.submit("eval", competition())
            first = await lease_end(b, job.id)

            async def is_renewed() -> bool:
                return await lease_end(b, job.id) > first

            await until(is_renewed)
            assert b.scorer.begun == []
            seen = asyncio.create_task(b.jobs.wait(job.id))
            a.end_all()
            assert same(await seen, evaluation())
            assert (await b.jobs.get(job.id)).state == "succeeded"


async def test_a_cancel_by_another_service_stops_the_work() -> None:
    with new_postgres_database() as name:
        async with (
            service_on(postgres_database(url_of(name))) as a,
            service_on(postgres_database(url_of(name))) as b,
        ):
            job = await a.jobs.submit("eval", competition())
            assert (await b.jobs.cancel(job.id)).state == "cancelled"

            async def has_stopped() -> bool:
                return a.jobs.num_running == 0

            await until(has_stopped)
            assert (await a.jobs.get(job.id)).state == "cancelled"


async def test_the_jobs_of_a_killed_service_are_each_taken_over_by_one() -> None:
    with new_postgres_database() as name:
        dead = Service(None, postgres_database(url_of(name)))  # type: ignore[arg-type]
        async with (
            service_on(postgres_database(url_of(name)), lease_seconds=60.0) as b,
            service_on(postgres_database(url_of(name)), lease_seconds=60.0) as c,
        ):
            await dead.database.start()
            dead.jobs = JobService(dead.database, KEY, dead.scorer, dead.scorer.scheduler, **QUICK)
            dead.jobs.start()
            ids = [(await dead.jobs.submit("eval", competition(seed))).id for seed in range(20)]
            await die(dead)
            b.end_all()
            c.end_all()
            for job_id in ids:
                assert (await finished(b, job_id)).state == "succeeded"
            begun = [request.seed for each in (b, c) for request in each.scorer.begun]
            assert sorted(begun) == list(range(20))


async def test_a_database_that_goes_away_delays_the_end_and_refuses_new_jobs() -> None:
    with new_postgres_database() as name:
        proxy = Proxy()
        async with service_on(postgres_database(url_of(name, proxy.port))) as service:
            job = await service.jobs.submit("eval", competition())
            proxy.close()
            service.end_all()
            with pytest.raises(OutOfResources):
                await service.jobs.submit("eval", competition())
            assert not (await service.jobs.get(job.id)).finished  # not before it is committed
            proxy.open()
            assert (await finished(service, job.id)).state == "succeeded"
            assert (await service.jobs.submit("eval", competition())).id != job.id
        proxy.close()


async def test_the_time_left_of_one_slow_batch_is_told_within_it() -> None:
    job = Job("eval", num_models=1, deadline=0.0)
    job.note(Progress("evaluating", model_index=0, batches_done=0, num_batches=1, fraction=0.0))
    assert job.estimated_seconds_left() is None
    await asyncio.sleep(0.02)
    job.note(Progress("evaluating", model_index=0, batches_done=0, num_batches=1, fraction=0.25))
    assert (job.estimated_seconds_left() or 0) >= 3 * 0.02


async def test_the_time_left_is_told_once_the_rate_is_known() -> None:
    job = Job("score", num_models=2, deadline=0.0)
    job.note(Progress("evaluating", model_index=0, batches_done=0, num_batches=4))
    assert job.estimated_seconds_left() is None
    await asyncio.sleep(0.02)
    job.note(Progress("evaluating", model_index=0, batches_done=1, num_batches=4))
    evaluating = job.estimated_seconds_left()
    assert evaluating is not None
    assert evaluating >= 7 * 0.02
    job.note(Progress("downloading", model_index=1, bytes_done=10, bytes_total=110, bytes_per_second=1.0))
    assert (job.estimated_seconds_left() or 0) >= 100 + evaluating
    job.note(Progress("done", model_index=0))
    job.become(End("succeeded", job.event + 1))
    assert job.estimated_seconds_left() is None
