"""Jobs of many pieces: a result for each, and what happens when their worker does not survive."""

import asyncio
from pathlib import Path

import pytest

from tests.workers.processes.pools import (
    cpus,
    job,
    job_of_pieces,
    misbehaving_pool,
    right_cross_entropy,
    until,
)
from workers.errors import EmptyData, EvaluationCrashesWorker, NonFiniteResult, WeightsInvalid
from workers.processes.process_pool import ProcessPool
from workers.types import MAX_PIECES_BYTES, EvalJob, EvalResult


def cross_entropies(results: list[object]) -> list[float]:
    return [result.cross_entropy for result in results if isinstance(result, EvalResult)]


async def test_each_piece_has_its_result(pool: ProcessPool, tmp_path: Path) -> None:
    results = await pool.evaluate_pieces(job_of_pieces("good", tmp_path, seed=3))
    assert cross_entropies(list(results)) == [3.0, 4.0, 5.0, 6.0]
    for result in results:
        assert isinstance(result, EvalResult)
        assert (result.num_batches, result.num_sequences, result.device) == (1, 1, "cpu")


async def test_pieces_stay_on_one_device(tmp_path: Path) -> None:
    async with misbehaving_pool(cpus(2)) as pool:
        results = await pool.evaluate_pieces(job_of_pieces("good", tmp_path, num_pieces=9))
    assert cross_entropies(list(results)) == [float(i) for i in range(9)]


async def test_what_is_not_finite_is_the_error_of_its_piece(pool: ProcessPool, tmp_path: Path) -> None:
    results = await pool.evaluate_pieces(job_of_pieces("nan", tmp_path))
    assert [type(result) for result in results] == [NonFiniteResult] * 4


async def test_refused_weights_fail_all_pieces(pool: ProcessPool, tmp_path: Path) -> None:
    with pytest.raises(WeightsInvalid):
        await pool.evaluate_pieces(job_of_pieces("refused", tmp_path))


async def test_the_loss_of_a_worker_costs_no_result(pool: ProcessPool, tmp_path: Path) -> None:
    results = await pool.evaluate_pieces(job_of_pieces("dies-once", tmp_path))
    assert cross_entropies(list(results)) == [0.0, 1.0, 2.0, 3.0]


async def test_pieces_that_end_workers_are_kept_from_a_third(pool: ProcessPool, tmp_path: Path) -> None:
    with pytest.raises(EvaluationCrashesWorker):
        await pool.evaluate_pieces(job_of_pieces("segfaults", tmp_path))
    fewer = job_of_pieces("segfaults", tmp_path, num_pieces=2)  # without the piece at which it happens
    assert cross_entropies(list(await pool.evaluate_pieces(fewer))) == [0.0, 1.0]


async def test_cancelling_stops_the_work(pool: ProcessPool, tmp_path: Path) -> None:
    task = asyncio.create_task(pool.evaluate_pieces(job_of_pieces("slow", tmp_path, num_pieces=100)))
    await until(lambda: pool.status()[0].busy)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    result = await pool.evaluate(job("good", tmp_path))
    assert result.cross_entropy == right_cross_entropy()


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((), EmptyData),
        ((b"some", b""), EmptyData),
        ((bytes(16 * 1024 + 1),), ValueError),
        ((bytes(16 * 1024),) * (MAX_PIECES_BYTES // (16 * 1024) + 1), ValueError),
    ],
)
async def test_refuses_what_are_no_pieces(
    pool: ProcessPool, pieces: tuple[bytes, ...], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await pool.evaluate_pieces(EvalJob.of_pieces(pieces, weights_path="w", weights_checksum="w", seed=0))
