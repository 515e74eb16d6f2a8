"""When each worker's share of an evaluation was begun and done, as a result tells it."""

from pathlib import Path

from tests.workers.processes.pools import job
from workers.processes.process_pool import ProcessPool


async def test_the_shares_are_all_batches_each_once(pair: ProcessPool, tmp_path: Path) -> None:
    result = await pair.evaluate(job("good", tmp_path))
    done = sorted(index for task in result.tasks for index in range(task.start, task.stop))
    assert done == list(range(10))
    assert len(result.tasks) > 1
    for task in result.tasks:
        assert task.device == "cpu"
        assert task.loaded is not None
        assert 0 <= task.began <= task.loaded <= task.ended


async def test_a_load_takes_what_the_worker_says(pool: ProcessPool, tmp_path: Path) -> None:
    (first,) = (await pool.evaluate(job("good", tmp_path))).tasks
    (again,) = (await pool.evaluate(job("good", tmp_path))).tasks
    assert first.load_seconds > again.load_seconds == 0.0


async def test_a_share_that_was_lost_with_its_worker_is_told_as_far_as_it_came(
    pool: ProcessPool, tmp_path: Path
) -> None:
    lost, rest = (await pool.evaluate(job("dies-once", tmp_path))).tasks
    assert (lost.start, lost.stop) == (0, 2)  # it dies before the third batch
    assert (rest.start, rest.stop) == (2, 10)
    assert lost.ended <= rest.began


async def test_a_share_whose_weights_were_never_loaded(pool: ProcessPool, tmp_path: Path) -> None:
    lost, rest = (await pool.evaluate(job("dies-loading-once", tmp_path))).tasks
    assert (lost.loaded, lost.start, lost.stop) == (None, 0, 0)
    assert (rest.start, rest.stop) == (0, 10)
