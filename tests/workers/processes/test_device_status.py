"""What a pool says of its devices, as the metrics and the status page show it."""

import asyncio
import signal
from dataclasses import replace
from pathlib import Path

from tests.workers.processes.pools import (
    SHORT_TIMEOUTS,
    job,
    misbehaving_pool,
    send_signal,
    until,
    until_whole,
)
from workers.processes.process_pool import ProcessPool
from workers.types import DeviceStatus, EvalProgress, RunningTask, WorkerMemory


def device(pool: ProcessPool) -> DeviceStatus:
    """The first of them."""
    return pool.status()[0]


async def test_a_device_that_has_done_nothing_yet(pool: ProcessPool) -> None:
    status = device(pool)
    assert status.self_test_age_seconds is not None
    assert status.self_test_age_seconds >= 0
    assert set(status.restarts_by_reason.values()) == {0}
    assert status.last_death == ""
    assert (status.resident, status.task) == (frozenset(), None)


async def test_the_batch_it_is_at(pool: ProcessPool, tmp_path: Path) -> None:
    seen: list[RunningTask | None] = []

    def note(_: EvalProgress) -> None:
        seen.append(device(pool).task)

    await pool.evaluate(job("good", tmp_path, num_batches=4), note)
    tasks = [task for task in seen if task]
    assert {(task.weights_checksum, task.start, task.stop) for task in tasks} == {("good", 0, 4)}
    assert [task.batch for task in tasks] == [0, 1, 2, 3, 3]  # loaded, then after each batch
    assert tasks[0].phase == "evaluating"
    await until(lambda: device(pool).task is None)


async def test_a_task_whose_weights_are_being_loaded(pool: ProcessPool, tmp_path: Path) -> None:
    evaluation = asyncio.create_task(pool.evaluate(job("loads-slowly", tmp_path)))
    await until(lambda: device(pool).task == RunningTask("loads-slowly", "loading", 0, 0, 10))
    await evaluation


async def test_memory_and_resident_weights(pool: ProcessPool, tmp_path: Path) -> None:
    await pool.evaluate(job("good", tmp_path))
    await pool.evaluate(job("good", tmp_path, key=bytes(32)))
    await until(lambda: device(pool).memory == WorkerMemory(total=100, used=10, weights=2, weights_limit=50))
    assert device(pool).resident == {"good"}  # under two keys, which are not told


async def test_restarts_have_their_reason(pool: ProcessPool, tmp_path: Path) -> None:
    send_signal(pool, signal.SIGKILL)
    await until(lambda: device(pool).restarts == 1)
    await until_whole(pool)
    await pool.evaluate(job("segfaults-once", tmp_path))
    reasons = device(pool).restarts_by_reason
    assert (reasons["killed"], reasons["fault"], sum(reasons.values())) == (1, 1, 2)
    assert device(pool).restarts == 2
    assert "signal 11" in device(pool).last_death


async def test_the_last_self_test_is_remembered_while_there_is_no_worker(tmp_path: Path) -> None:
    slow_to_restart = replace(SHORT_TIMEOUTS, restart_seconds=60.0, max_restart_seconds=60.0)
    async with misbehaving_pool(timeouts=slow_to_restart) as pool:
        send_signal(pool, signal.SIGKILL)
        await until(lambda: device(pool).pid is None)
        gone = device(pool)
    assert not gone.ready
    assert gone.self_test_age_seconds is not None
    assert (gone.memory, gone.task, gone.restarts) == (None, None, 0)
