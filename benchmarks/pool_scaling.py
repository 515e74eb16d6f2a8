"""One evaluation of 40 batches on 1, 2 and 3 CPU workers of equal thread count: the same bits, and how fast.

    python -m benchmarks.pool_scaling [--threads 1] [--max-workers 3]

Every pool is compared with one worker that has as many threads as all of the pool's workers together.
Ratios above 1 mean that sharing an evaluation out is faster than giving one worker more threads.
Exits with 1 when any two workers of equal thread count disagree in a bit.
"""

import argparse
import asyncio
import os
import statistics
import tempfile
from pathlib import Path

import numpy as np

from tests.recipe import SMALL_WEIGHTS, make_data, small_weights_bytes
from workers.pool import create_pool
from workers.types import EvalJob, EvalResult

NUM_BATCHES = 40
DATA_BYTES = NUM_BATCHES * 16 * 1024


async def measure(job: EvalJob, num_workers: int, num_threads: int, repeats: int) -> tuple[EvalResult, float]:
    """The result, and the median of the seconds from call to answer, with the weights resident."""
    pool = create_pool(["cpu"] * num_workers, small_model=True, num_threads=num_threads)
    await pool.start()
    try:
        await pool.evaluate(job)
        seconds = []
        for _ in range(repeats):
            began = asyncio.get_running_loop().time()
            result = await pool.evaluate(job)
            seconds.append(asyncio.get_running_loop().time() - began)
        return result, statistics.median(seconds)
    finally:
        await pool.close()


def bits(result: EvalResult) -> bytes:
    """Everything that must not differ."""
    numbers = np.array([result.loss, result.cross_entropy, result.sig_reg])
    return numbers.tobytes() + result.embedding.tobytes()


async def compare(folder: Path, num_threads: int, max_workers: int, repeats: int) -> bool:
    """Print one line per pool; whether all agreed to the bit."""
    (folder / "weights").write_bytes(small_weights_bytes(SMALL_WEIGHTS))
    (folder / "data").write_bytes(make_data({"pattern": "text", "size": DATA_BYTES}))
    job = EvalJob(str(folder / "weights"), "weights", str(folder / "data"), DATA_BYTES, seed=1)
    print(f"{NUM_BATCHES} batches, small model, {os.cpu_count()} cores, median of {repeats}")
    print("workers x threads    seconds    one worker, as many threads    ratio    same bits    loss apart")
    reference: EvalResult | None = None
    agreed = True
    for num_workers in range(1, max_workers + 1):
        result, seconds = await measure(job, num_workers, num_threads, repeats)
        reference = reference or result
        same = bits(result) == bits(reference)
        agreed = agreed and same
        alone, alone_seconds = await measure(job, 1, num_workers * num_threads, repeats)
        apart = abs(alone.loss - reference.loss) / reference.loss
        print(
            f"{num_workers:7} x {num_threads:<7} {seconds:10.2f} {alone_seconds:20.2f}"
            f"{alone_seconds / seconds:17.2f} {'yes' if same else 'NO':>11} {apart:15.1e}"
        )
    return agreed


def main() -> None:
    """Run the comparison with what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker")
    parser.add_argument("--max-workers", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        agreed = asyncio.run(
            compare(Path(folder), arguments.threads, arguments.max_workers, arguments.repeats)
        )
    raise SystemExit(0 if agreed else 1)


if __name__ == "__main__":
    main()
