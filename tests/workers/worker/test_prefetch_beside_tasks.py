"""A worker with room for two models, whose parent sends a task and the next prefetch in one go."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from workers.messages import Configure, Evaluate, Finished, Heartbeat, Loaded, Prefetch, Ready, Resident
from workers.processes.process_handle import PipeClosed
from workers.processes.worker_process import WorkerProcess
from workers.types import EvalJob, WorkerConfig

NUM_TRIALS = 200


@pytest_asyncio.fixture
async def process() -> AsyncIterator[WorkerProcess]:
    """The worker, which has passed its self-test; killed after the test."""
    config = WorkerConfig("cpu", num_threads=1, memory_budget_bytes=200)
    process = await WorkerProcess.spawn(config, "tests.workers.worker.two_models")
    try:
        process.send(Configure(config, heartbeat_seconds=0.005))
        while not isinstance(message := await process.receive(60), Ready):
            assert message is not None
            assert not isinstance(message, PipeClosed)
        yield process
    finally:
        await process.kill()


def job(folder: Path, name: str) -> EvalJob:
    path = folder / name
    path.write_bytes(bytes(100))
    return EvalJob(str(path), name, str(path), data_size=100, seed=0)


@pytest.mark.slow
async def test_a_prefetch_never_evicts_the_weights_of_the_task_before_it(
    process: WorkerProcess, tmp_path: Path
) -> None:
    jobs = [job(tmp_path, name) for name in "abc"]
    load_seconds = []
    for task_id in range(1, NUM_TRIALS + 1):
        current, following = jobs[task_id % 3], jobs[(task_id + 1) % 3]
        process.send(Evaluate(task_id, current, 0, 1))
        process.send(Prefetch(following))
        is_finished = is_prefetched = False
        async with asyncio.timeout(60):
            while not (is_finished and is_prefetched):
                match await process.receive(60):
                    case Loaded(_, seconds):
                        load_seconds.append(seconds)
                    case Finished():
                        is_finished = True
                    case Resident(weights):
                        is_prefetched = following.weights_id in weights
                    case Heartbeat() if is_finished:  # it was refused, beside the first load for example
                        process.send(Prefetch(following))
    assert load_seconds[1:] == [0.0] * (NUM_TRIALS - 1)
