"""The pool of the service's tests keeps the contract that it stands in for."""

import asyncio

import pytest

from tests.in_process_pool import InProcessPool, eval_result
from workers.errors import WeightsInvalid
from workers.types import EvalJob, EvalProgress


def job(checksum: str) -> EvalJob:
    return EvalJob("weights", checksum, "data", 1, 0)


async def test_it_answers_by_the_weights_checksum() -> None:
    pool = InProcessPool({"good": eval_result(loss=0.5), "bad": WeightsInvalid("no")})
    seen: list[EvalProgress] = []
    assert (await pool.evaluate(job("good"), seen.append)).loss == 0.5
    assert [progress.batches_done for progress in seen] == [0, 1]
    with pytest.raises(WeightsInvalid):
        await pool.evaluate(job("bad"))
    assert (await pool.evaluate(job("other"))).loss == 1.0
    assert [job.weights_checksum for job in pool.jobs] == ["good", "bad", "other"]


async def test_evaluations_wait_until_released_or_cancelled() -> None:
    pool = InProcessPool()
    pool.released.clear()
    tasks = [asyncio.create_task(pool.evaluate(job("any"))) for _ in range(2)]
    await asyncio.sleep(0)
    assert pool.num_running == 2
    assert pool.status()[0].busy
    tasks[0].cancel()
    await asyncio.wait(tasks[:1])
    pool.released.set()
    assert (await tasks[1]).loss == 1.0
    assert (pool.num_running, pool.num_cancelled) == (0, 1)
