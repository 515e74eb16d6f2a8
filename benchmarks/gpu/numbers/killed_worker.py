"""A worker is killed in the middle of an evaluation; its successor finishes it: the same bits."""

import asyncio
import os
import signal
import time

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.pools import bits, first_device, job, started_pool
from benchmarks.gpu.testbed import Testbed
from workers.pool import WorkerPool
from workers.types import EvalJob, EvalProgress, EvalResult


def run(testbed: Testbed, findings: Findings) -> None:
    asyncio.run(_run(testbed, findings))


async def _run(testbed: Testbed, findings: Findings) -> None:
    data = testbed.data_of_workers(6, sequences_on_cpu=32)
    async with started_pool(testbed, [first_device(testbed)]) as pool:
        whole = await pool.evaluate(job(testbed, "weights", data))
        began = time.perf_counter()
        interrupted, pid = await _killed_midway(pool, job(testbed, "weights", data))
        seconds = time.perf_counter() - began
        successor = pool.status()[0].pid
    same = bits(interrupted) == bits(whole) and successor != pid
    findings.add(
        "same bits after a kill -9 of the worker",
        "yes" if same else "NO",
        same,
        note=f"{seconds:.1f} s with a new worker, {whole.load_seconds + whole.eval_seconds:.1f} s without",
        seconds=seconds,
    )


async def _killed_midway(pool: WorkerPool, job: EvalJob) -> tuple[EvalResult, int]:
    """The result, and which process was killed after the first batch."""
    killed: list[int] = []

    def kill(progress: EvalProgress) -> None:
        pid = pool.status()[0].pid
        if progress.batches_done >= 1 and not killed and pid is not None:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)

    result = await pool.evaluate(job, kill)
    if not killed:
        raise RuntimeError("the evaluation ended before its worker could be killed")
    return result, killed[0]
