"""Who is held responsible when workers are lost: this machine, or an evaluation, and then on what proof."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.processes.pools import (
    SHORT_TIMEOUTS,
    cpus,
    job,
    misbehaving_pool,
    pids,
    right_cross_entropy,
    until,
    until_whole,
)
from workers.errors import (
    EvaluationCrashesWorker,
    NonFiniteResult,
    NoWorker,
    OutOfMemory,
    WorkerCrashed,
    WorkerTrouble,
)
from workers.processes.process_pool import ProcessPool
from workers.types import WorkerConfig

pytestmark = pytest.mark.slow

TWO_GPUS = [WorkerConfig("cuda:0"), WorkerConfig("cuda:1")]
SOON_BACK = replace(SHORT_TIMEOUTS, out_of_service_seconds=0.5)


def make_sick(folder: Path, device: str) -> Path:
    """From now on that device fails in every evaluation of three batches or more."""
    mark = folder / f"{device} is sick"
    mark.touch()
    return mark


def restarts(pool: ProcessPool) -> int:
    return sum(status.restarts for status in pool.status())


# -- this machine's trouble


@pytest.mark.parametrize("kind", ["exits", "raises-unexpected", "aborts", "reads-beyond-a-file", "dies"])
@pytest.mark.parametrize("num_workers", [1, 2])
async def test_an_end_that_is_no_fault_is_never_held_against_the_evaluation(
    kind: str, num_workers: int, tmp_path: Path
) -> None:
    async with misbehaving_pool(cpus(num_workers)) as pool:
        for _ in range(4):
            with pytest.raises(WorkerTrouble):
                await pool.evaluate(job(kind, tmp_path))


@pytest.mark.parametrize(("kind", "error"), [("dies", OutOfMemory), ("exits", WorkerCrashed)])
async def test_an_evaluation_does_not_take_worker_after_worker(
    kind: str, error: type[Exception], tmp_path: Path
) -> None:
    async with misbehaving_pool() as pool:
        for _ in range(4):
            with pytest.raises(WorkerTrouble) as last:
                await pool.evaluate(job(kind, tmp_path))
        assert type(last.value) is error
        await until_whole(pool)
        assert restarts(pool) == 4
        assert (await pool.evaluate(job("good", tmp_path))).cross_entropy == right_cross_entropy()


async def test_another_device_makes_good_what_one_failed_in(tmp_path: Path) -> None:
    async with misbehaving_pool(TWO_GPUS) as pool:
        make_sick(tmp_path, "cuda:0")
        result = await pool.evaluate(job("good", tmp_path))
        assert result.cross_entropy == right_cross_entropy()


# -- a device that fails in evaluations, and not in its self-test


async def test_a_device_that_fails_again_and_again_is_out_of_service(tmp_path: Path) -> None:
    async with misbehaving_pool(timeouts=SOON_BACK) as pool:
        mark = make_sick(tmp_path, "cpu")
        for kind in ("one", "other"):
            with pytest.raises(WorkerTrouble):
                await pool.evaluate(job(kind, tmp_path))
        status = pool.status()[0]
        assert not status.ready
        assert "3 evaluations in a row ended its worker" in status.trouble
        with pytest.raises(NoWorker):
            await pool.evaluate(job("third", tmp_path))
        mark.unlink()
        await until_whole(pool)
        assert (await pool.evaluate(job("one", tmp_path))).cross_entropy == right_cross_entropy()
        assert pool.status()[0].trouble == ""


async def test_it_is_not_taken_back_before_it_passes_the_large_self_test(tmp_path: Path) -> None:
    mark = tmp_path / "spoiled"
    async with misbehaving_pool([WorkerConfig(f"wrong-large:{mark}")], SOON_BACK) as pool:
        pid = pids(pool)[0]
        with pytest.raises(WorkerTrouble):
            await pool.evaluate(job("segfaults-and-spoils-the-device", tmp_path))
        await until(lambda: pids(pool) not in ([], [pid]))
        assert not pool.status()[0].ready
        assert "loss 1 instead of 2" in pool.status()[0].trouble
        mark.unlink()
        await until_whole(pool)


async def test_the_other_devices_go_on(tmp_path: Path) -> None:
    async with misbehaving_pool(TWO_GPUS, replace(SHORT_TIMEOUTS, out_of_service_seconds=60.0)) as pool:
        make_sick(tmp_path, "cuda:0")
        for n in range(50):
            result = await pool.evaluate(job(f"good-{n}", tmp_path))
            assert result.cross_entropy == right_cross_entropy()
            sick, sound = pool.status()
            if "out of service" in sick.trouble:
                break
        assert (sick.ready, sound.ready) == (False, True)
        assert "60 s" in sick.trouble


async def test_another_kind_of_device_takes_over(tmp_path: Path) -> None:
    configs = [WorkerConfig("cuda:0"), WorkerConfig("cpu")]
    async with misbehaving_pool(configs, replace(SHORT_TIMEOUTS, out_of_service_seconds=60.0)) as pool:
        make_sick(tmp_path, "cuda:0")
        for n in range(4):
            try:
                result = await pool.evaluate(job(f"good-{n}", tmp_path))
            except WorkerCrashed:
                continue
        assert result.cross_entropy == right_cross_entropy()
        assert result.device == "cpu"


async def test_one_evaluation_alone_takes_no_device_out_of_service(tmp_path: Path) -> None:
    async with misbehaving_pool() as pool:
        for _ in range(3):
            with pytest.raises(WorkerTrouble):
                await pool.evaluate(job("exits", tmp_path))
        await until_whole(pool)


# -- a result that is not finite


async def test_weights_that_give_no_finite_result_are_refused(tmp_path: Path) -> None:
    async with misbehaving_pool() as pool:
        with pytest.raises(NonFiniteResult):
            await pool.evaluate(job("nan", tmp_path))
        assert restarts(pool) == 0


async def test_nan_of_a_device_that_computes_wrongly_is_the_machines_trouble(tmp_path: Path) -> None:
    async with misbehaving_pool([WorkerConfig(f"wrong:{tmp_path / 'spoiled'}")]) as pool:
        with pytest.raises(WorkerTrouble):
            await pool.evaluate(job("nan-of-a-spoiled-device", tmp_path))


# -- faults


@pytest.mark.parametrize("num_workers", [1, 2])
async def test_faults_of_two_sound_workers_are_held_against_the_evaluation(
    num_workers: int, tmp_path: Path
) -> None:
    async with misbehaving_pool(cpus(num_workers)) as pool:
        for _ in range(2):
            with pytest.raises(EvaluationCrashesWorker):
                await pool.evaluate(job("segfaults", tmp_path))
        await until_whole(pool)
        assert restarts(pool) == 2  # the second time risked no worker
        assert (await pool.evaluate(job("good", tmp_path))).cross_entropy == right_cross_entropy()


@pytest.mark.parametrize("test", ["wrong", "wrong-large"])
async def test_a_fault_of_a_device_that_then_fails_its_self_test_does_not_count(
    test: str, tmp_path: Path
) -> None:
    async with misbehaving_pool([WorkerConfig(f"{test}:{tmp_path / 'spoiled'}")]) as pool:
        with pytest.raises(WorkerTrouble):
            await pool.evaluate(job("segfaults-and-spoils-the-device", tmp_path))


async def test_two_faults_of_one_device_do_not_count_where_there_are_two(tmp_path: Path) -> None:
    spoiled = WorkerConfig(f"wrong:{tmp_path / 'spoiled'}")
    async with misbehaving_pool([spoiled, replace(spoiled, num_threads=2)]) as pool:
        with pytest.raises(WorkerTrouble):  # whichever device has the second, neither passes a test after it
            await pool.evaluate(job("segfaults-and-spoils-the-device", tmp_path))


async def test_faults_while_other_weights_are_loaded_may_be_theirs(tmp_path: Path) -> None:
    async with misbehaving_pool() as pool:
        running = asyncio.create_task(pool.evaluate(job("good", tmp_path, 60)))
        await until(lambda: pool.status()[0].busy)
        first = asyncio.create_task(pool.evaluate(job("segfaults-prefetched", tmp_path)))
        await until(lambda: restarts(pool) == 1)
        first.cancel()
        await until(lambda: pool.status()[0].busy)
        second = asyncio.create_task(pool.evaluate(job("segfaults-prefetched-too", tmp_path)))
        assert (await running).cross_entropy == right_cross_entropy(60)
        second.cancel()
