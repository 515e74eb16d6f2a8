"""A real device that faults, or has no memory left: the job fails, the worker or its successor goes on."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import torch

from tests.recipe import golden_cases, make_data, small_weights_bytes
from tests.workers.processes.pools import pids, until_whole
from workers.errors import OutOfMemory, WorkerCrashed
from workers.processes.process_pool import ProcessPool
from workers.types import EvalJob, WorkerConfig

CASE = golden_cases()["small-short"]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[ProcessPool]:
    """One worker on the first GPU."""
    pool = ProcessPool(
        [WorkerConfig("cuda:0", small_model=True)], entry_module="tests.workers.worker.faulting_gpu"
    )
    await pool.start()
    yield pool
    await pool.close()


def job(kind: str, folder: Path) -> EvalJob:
    """The golden case, but for what its weights do to the device."""
    weights, data = folder / "weights", folder / "data"
    weights.write_bytes(small_weights_bytes(CASE.weights))
    data.write_bytes(make_data(CASE.data))
    return EvalJob(str(weights), kind, str(data), CASE.data["size"], CASE.seed)


async def test_golden(pool: ProcessPool, tmp_path: Path) -> None:
    result = await pool.evaluate(job("good", tmp_path))
    assert result.loss == pytest.approx(CASE.loss, rel=1e-5)
    assert result.device == "cuda:0"
    assert pool.status()[0].device_name == torch.cuda.get_device_name(0)


async def test_exhausted_memory_costs_one_job(pool: ProcessPool, tmp_path: Path) -> None:
    known = pids(pool)
    with pytest.raises(OutOfMemory):
        await pool.evaluate(job("asks-for-too-much", tmp_path))
    assert (await pool.evaluate(job("good", tmp_path))).loss == pytest.approx(CASE.loss, rel=1e-5)
    assert pids(pool) == known


async def test_a_fault_costs_the_worker_and_its_successor_goes_on(pool: ProcessPool, tmp_path: Path) -> None:
    known = pids(pool)
    with pytest.raises(WorkerCrashed):
        await pool.evaluate(job("touches-foreign-memory", tmp_path))
    await until_whole(pool)
    assert pids(pool) != known
    assert (await pool.evaluate(job("good", tmp_path))).loss == pytest.approx(CASE.loss, rel=1e-5)
