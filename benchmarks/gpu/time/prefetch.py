"""Loading the next model's weights beside an evaluation: what either costs the other, and the same bits."""

import asyncio

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.pools import bits, first_device, job, started_pool
from benchmarks.gpu.testbed import Testbed


def run(testbed: Testbed, findings: Findings) -> None:
    asyncio.run(_run(testbed, findings))


async def _run(testbed: Testbed, findings: Findings) -> None:
    data = testbed.data_of_workers(6, sequences_on_cpu=2)
    async with started_pool(testbed, [first_device(testbed)]) as pool:
        cold = await pool.evaluate(job(testbed, "first", data))
        alone = await pool.evaluate(job(testbed, "first", data))
        beside, after = await asyncio.gather(
            pool.evaluate(job(testbed, "first", data)),
            pool.evaluate(job(testbed, "second", data)),
        )
    same = bits(cold) == bits(alone) == bits(beside) == bits(after)
    findings.add("same bits beside a prefetch", "yes" if same else "NO", same)
    slower = beside.eval_seconds / alone.eval_seconds
    findings.add(
        "prefetch beside an evaluation",
        f"the evaluation takes {slower:.2f} times as long, the next one waits {after.load_seconds:.2f} s for weights",
        note=f"a load alone takes {cold.load_seconds:.2f} s, an evaluation {alone.eval_seconds:.2f} s",
        slower=slower,
        wait_seconds=after.load_seconds,
        load_seconds=cold.load_seconds,
        eval_seconds=alone.eval_seconds,
    )
