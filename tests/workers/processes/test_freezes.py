"""Real workers that are frozen while they compute, with the limits of a service."""

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tests.recipe import SMALL_WEIGHTS, make_data, small_weights_bytes
from tests.workers.processes.pools import is_alive, pids, until
from workers.pool import create_pool
from workers.types import EvalJob, EvalProgress

NUM_BATCHES = 12


@pytest.mark.slow
async def test_a_worker_frozen_in_a_batch_is_given_up_for_its_silence_and_its_work_done_again(
    tmp_path: Path,
) -> None:
    weights, data = tmp_path / "weights", tmp_path / "data"
    weights.write_bytes(small_weights_bytes(SMALL_WEIGHTS))
    data.write_bytes(make_data({"pattern": "text", "size": NUM_BATCHES * 16 * 1024}))
    job = EvalJob(str(weights), "", str(data), data.stat().st_size, 7)
    pool = create_pool(["cpu"], small_model=True, num_threads=1)
    await pool.start()
    try:
        undisturbed = await pool.evaluate(job)
        seen: list[EvalProgress] = []
        running = asyncio.create_task(pool.evaluate(job, seen.append))
        await until(lambda: bool(seen) and seen[-1].batches_done > 0)
        (frozen,) = pids(pool)
        os.kill(frozen, signal.SIGSTOP)
        result = await running
        assert (result.loss, result.embedding.tobytes()) == (
            (undisturbed.loss, undisturbed.embedding.tobytes())
        )
        assert pool.status()[0].last_death == "froze"
        assert not is_alive(frozen)
    finally:
        await pool.close()
