"""Random kills and freezes under steady load: every caller gets the one right loss or a typed error.

A few faults by default; `SOAK_FAULTS=50 python -m pytest tests/workers/processes/test_soak.py` for more.
"""

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.recipe import SMALL_WEIGHTS, make_data, small_weights_bytes
from tests.workers.processes.pools import is_alive, pids, until_whole
from workers.errors import WorkerTrouble
from workers.processes.process_pool import ProcessPool
from workers.processes.timeouts import Timeouts
from workers.types import EvalJob, WorkerConfig

NUM_FAULTS = int(os.environ.get("SOAK_FAULTS", "8"))
NUM_CLIENTS = 4
NUM_WORKERS = 2
DATA_BYTES = 40_000
"""Three batches."""
TIMEOUTS = Timeouts(
    frozen_seconds=3.0,
    start_seconds=30.0,  # nothing else ends a process that was frozen while it starts
    stop_seconds=3.0,
    terminate_seconds=0.5,
    restart_seconds=0.1,
    max_restart_seconds=1.0,
    self_test_interval_seconds=5.0,
)


def jobs(folder: Path) -> list[EvalJob]:
    """Two models, three seeds."""
    (folder / "data").write_bytes(make_data({"pattern": "hash", "size": DATA_BYTES, "seed": 3}))
    for name, seed in (("a", 7), ("b", 8)):
        (folder / name).write_bytes(small_weights_bytes({**SMALL_WEIGHTS, "seed": seed}))
    return [
        EvalJob(str(folder / name), name, str(folder / "data"), DATA_BYTES, seed)
        for name in "ab"
        for seed in range(3)
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_random_kills_and_freezes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance, counts = random.Random(20), Counter[str]()
    everyone: set[int] = set()
    pool = ProcessPool([WorkerConfig("cpu", small_model=True, num_threads=1)] * NUM_WORKERS, TIMEOUTS)
    await pool.start()
    todo = jobs(tmp_path)
    right = {job: (await pool.evaluate(job)).loss for job in todo}

    async def client() -> None:
        while counts["kill -9"] + counts["freeze"] < NUM_FAULTS:
            job = chance.choice(todo)
            try:
                loss = (await pool.evaluate(job)).loss
                counts["right loss" if loss == right[job] else "wrong loss"] += 1
            except WorkerTrouble as trouble:
                counts[type(trouble).__name__] += 1
                await asyncio.sleep(0.5)  # as Retry-After would have it

    async def troublemaker() -> None:
        for number_of_fault in range(1, NUM_FAULTS + 1):
            await asyncio.sleep(chance.uniform(0.5, 5.0))
            # A busy machine is given the time that it needs between two faults.
            while counts["right loss"] < 2 * number_of_fault or not pids(pool):
                await asyncio.sleep(0.01)
            everyone.update(pids(pool))
            fault, number = chance.choice([("kill -9", signal.SIGKILL), ("freeze", signal.SIGSTOP)])
            os.kill(chance.choice(pids(pool)), number)
            counts[fault] += 1

    await asyncio.gather(troublemaker(), *(client() for _ in range(NUM_CLIENTS)))
    await until_whole(pool, 3 * TIMEOUTS.start_seconds)
    everyone.update(pids(pool))
    restarts = sum(status.restarts for status in pool.status())
    await pool.close()
    with capsys.disabled():
        sys.stdout.write(f"\n{dict(counts)}, {restarts} restarts, {len(everyone)} workers lived\n")
    assert counts["wrong loss"] == 0
    assert counts["right loss"] > counts.total() // 2
    assert not [pid for pid in everyone if is_alive(pid)]
