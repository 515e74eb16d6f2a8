"""The bookkeeping of one evaluation: every batch once, whoever dies."""

import random
from dataclasses import replace

import numpy as np
import pytest

from tests.workers.processes.pools import BYTES_PER_BATCH, right_cross_entropy
from workers.architectures import CURRENT_VERSION, config_of, load_architecture
from workers.errors import NonFiniteResult, WorkerCrashed
from workers.processes.pending_evaluation import PendingEvaluation
from workers.types import BatchScore, DeviceKind, EvalJob

CPU = DeviceKind("cpu", "a CPU")


def evaluation(num_batches: int) -> PendingEvaluation:
    job = EvalJob("weights", "checksum", "data", num_batches * BYTES_PER_BATCH, 0)
    return PendingEvaluation(job, config_of(load_architecture(CURRENT_VERSION)))


def score(index: int, cross_entropy: float | None = None) -> BatchScore:
    """A batch whose cross-entropy is its index, unless another is given."""
    numbers = float(index if cross_entropy is None else cross_entropy)
    return BatchScore(index, numbers, 1.0, np.zeros(2, np.float32), False)


async def test_ranges_grow_smaller_and_leave_nothing_out() -> None:
    one = evaluation(40)
    ranges: list[range] = []
    while one.num_free:
        ranges.append(one.take(len(ranges), CPU, num_workers=2))
    assert [index for batches in ranges for index in batches] == list(range(40))
    sizes = [len(batches) for batches in ranges]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 10
    assert sizes[-1] == 1


async def test_one_worker_gets_all_at_once() -> None:
    assert evaluation(40).take(1, CPU, num_workers=1) == range(40)


async def test_what_a_dead_worker_left_is_free_again() -> None:
    one = evaluation(10)
    assert one.take(1, CPU, num_workers=1) == range(10)
    for index in range(4):
        one.batch_done(score(index))
    one.worker_died(1)
    assert one.take(2, CPU, num_workers=1) == range(4, 10)


@pytest.mark.parametrize("seed", range(20))
async def test_every_batch_is_done_once_whoever_dies(seed: int) -> None:
    chance, one, task_id, done = random.Random(seed), evaluation(64), 0, []
    running: dict[int, range] = {}
    while not one.is_done:
        while one.num_free and len(running) < 3:
            task_id += 1
            running[task_id] = one.take(task_id, CPU, num_workers=3)
        chosen = chance.choice(list(running))
        for index in running.pop(chosen):
            if chance.random() < 0.1:
                one.give_back(chosen)
                break
            done.append(index)
            one.batch_done(score(index))
        else:
            one.task_finished(chosen)
    assert sorted(done) == list(range(64))
    assert (await one.result("float32")).cross_entropy == right_cross_entropy(64)


@pytest.mark.parametrize(
    ("num_batches", "num_points", "last"), [(1, 1, 0.0), (512, 512, 511.0), (1026, 342, 1024.0)]
)
async def test_the_cross_entropy_along_the_data_is_in_its_order_and_bounded(
    num_batches: int, num_points: int, last: float
) -> None:
    one = evaluation(num_batches)
    one.take(1, CPU, num_workers=1)
    for index in reversed(range(num_batches)):
        one.batch_done(score(index))
    along = (await one.result("float32")).cross_entropy_along
    assert len(along) == num_points
    assert along == tuple(sorted(along))
    assert along[-1] == last


async def test_after_two_deaths_no_further_worker_is_given() -> None:
    one = evaluation(4)
    for task_id in range(2):
        assert not one.is_exhausted
        one.take(task_id, CPU, num_workers=1)
        one.worker_died(task_id)
    assert one.is_exhausted
    assert one.num_free == 0


async def test_another_kind_of_device_may_take_over_what_nothing_was_done_of() -> None:
    one = evaluation(4)
    one.take(1, CPU, num_workers=1)
    one.worker_died(1)
    assert one.kind is None


async def test_what_was_done_on_one_kind_of_device_is_not_mixed_with_another() -> None:
    one = evaluation(4)
    one.take(1, CPU, num_workers=1)
    one.batch_done(score(0))
    one.worker_died(1)
    assert one.kind == CPU
    one.start_over()
    assert one.take(2, DeviceKind("cuda", "any"), num_workers=1) == range(4)


@pytest.mark.parametrize("was_cut_smaller", [False, True])
async def test_a_result_tells_whether_any_batch_was_cut_smaller(was_cut_smaller: bool) -> None:
    one = evaluation(2)
    one.take(1, CPU, num_workers=1)
    one.batch_done(score(0))
    one.batch_done(replace(score(1), was_cut_smaller=was_cut_smaller))
    result = await one.result("float32")
    assert (result.was_cut_smaller, result.device_name) == (was_cut_smaller, CPU.name)


async def test_a_mean_that_is_not_finite_is_no_result() -> None:
    one = evaluation(1)
    one.batch_done(score(0, float("nan")))
    with pytest.raises(NonFiniteResult):
        await one.result("float32")


async def test_the_first_error_is_the_outcome() -> None:
    one = evaluation(1)
    one.fail(WorkerCrashed("first"))
    one.fail(WorkerCrashed("second"))
    one.batch_done(score(0))
    assert one.num_free == 0
    with pytest.raises(WorkerCrashed, match="first"):
        await one.result("float32")


async def test_a_further_worker_that_would_load_longer_than_the_rest_takes_is_no_gain() -> None:
    one = evaluation(10)
    one.take(1, CPU, num_workers=2)
    one.loaded("cuda:0", 1000.0, {})
    assert one.gains_by(begin_seconds=1000.0)  # how long a batch takes is not known yet
    one.batch_done(score(0))
    assert not one.gains_by(begin_seconds=1000.0)
    assert one.gains_by(begin_seconds=0.0)
