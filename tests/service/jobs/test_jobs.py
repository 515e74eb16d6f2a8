"""Long work: states, news, ends, and forgetting."""

import asyncio

import pytest

from service.errors import JobNotFound, NoWorker, QueueFull
from service.jobs.jobs import Job, JobStore
from service.scoring.results import Evaluation, OnProgress, Progress


async def endless(on_progress: OnProgress) -> Evaluation:
    on_progress(Progress("admitted"))
    on_progress(Progress("evaluating", model_index=0, batches_done=1, num_batches=4))
    await asyncio.sleep(3600)
    raise AssertionError("not reached")


async def failing(on_progress: OnProgress) -> Evaluation:
    on_progress(Progress("admitted"))
    await asyncio.sleep(0)
    raise NoWorker("none")


async def refused(on_progress: OnProgress) -> Evaluation:
    raise QueueFull("full", retry_after_seconds=1.0)


async def test_a_refused_job_is_refused_at_once_and_not_kept() -> None:
    store = JobStore()
    with pytest.raises(QueueFull):
        await store.submit("eval", 1, refused)
    assert not store._jobs


async def test_cancelling_stops_the_work() -> None:
    store = JobStore()
    job = await store.submit("eval", 1, endless)
    await asyncio.sleep(0)
    assert job.state == "running"
    cancelled = await store.cancel(job.id)
    assert (cancelled.state, cancelled.error) == ("cancelled", None)
    assert (await store.cancel(job.id)).state == "cancelled"


async def test_followers_see_the_end() -> None:
    store = JobStore()
    job = await store.submit("eval", 1, failing)
    states = [seen.state async for seen in store.follow(job.id)]
    assert states[-1] == "failed"
    assert isinstance(job.error, NoWorker)


async def test_finished_jobs_are_bounded_in_number_and_age() -> None:
    store = JobStore(max_finished=2)
    jobs = [await store.submit("eval", 1, failing) for _ in range(4)]
    await asyncio.sleep(0.01)
    with pytest.raises(JobNotFound):
        store.get(jobs[0].id)
    assert store.get(jobs[3].id).state == "failed"
    store._max_age_seconds = 0.0
    with pytest.raises(JobNotFound):
        store.get(jobs[3].id)


async def test_a_long_job_outlives_the_younger_ones_that_ended_before_it() -> None:
    store = JobStore(max_finished=2)
    may_end = asyncio.Event()

    async def long(on_progress: OnProgress) -> Evaluation:
        on_progress(Progress("admitted"))
        await may_end.wait()
        raise NoWorker("none")

    job = await store.submit("eval", 1, long)
    younger = [await store.submit("eval", 1, failing) for _ in range(4)]
    await asyncio.sleep(0.01)
    assert store.get(job.id).state == "queued"  # one that has not ended is always there
    may_end.set()
    await asyncio.sleep(0.01)
    assert store.get(job.id).state == "failed"
    assert store.get(younger[3].id).state == "failed"
    with pytest.raises(JobNotFound):
        store.get(younger[2].id)


async def test_a_job_that_is_cancelled_before_it_begins_has_an_end() -> None:
    store = JobStore()
    submitting = asyncio.create_task(store.submit("eval", 1, endless))
    await asyncio.sleep(0)  # the job's task is there, and has not run
    await store.close()
    job = await submitting
    assert job.state == "cancelled"
    assert [seen.state async for seen in store.follow(job.id)] == ["cancelled"]


async def test_closing_stops_all_work() -> None:
    store = JobStore()
    job = await store.submit("eval", 1, endless)
    await store.close()
    assert job.state == "cancelled"


async def test_the_time_left_is_told_once_the_pace_is_known() -> None:
    job = Job("score", num_models=2)
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
    job.finish("succeeded")
    assert job.estimated_seconds_left() is None
