"""One evaluation of 40 batches on 1, 2 and 3 workers of equal thread count: the same bits, and how fast.

    python -m benchmarks.pool_scaling [--threads 1] [--max-workers 3] [--rounds 3] [--device cpu] [--precision float32]

Each pool stands beside one worker that has as many threads as all of the pool's workers together. A ratio
above 1 means that sharing an evaluation out is faster than giving one worker more threads. All pools live
at once and take turns, so that whatever else the machine does meets them alike; the best round counts. All workers
are on the one device: with --device cuda on the first card, where threads make no difference.
Exits with 1 when workers of equal thread count disagree in a bit.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.device_options import add_device_options, check_device_options
from tests.recipe import SMALL_WEIGHTS, make_data, small_weights_bytes
from workers.pool import WorkerPool, create_pool
from workers.types import EvalJob, EvalResult, Precision

NUM_BATCHES = 40
DATA_BYTES = NUM_BATCHES * 16 * 1024


@dataclass
class Entry:
    """One pool, and the best it did."""

    num_workers: int
    num_threads: int
    pool: WorkerPool
    seconds: float = float("inf")
    result: EvalResult | None = None

    async def run(self, job: EvalJob) -> None:
        """One round."""
        began = time.perf_counter()
        self.result = await self.pool.evaluate(job)
        self.seconds = min(self.seconds, time.perf_counter() - began)

    @property
    def bits(self) -> bytes:
        """Everything that must not differ."""
        assert self.result is not None
        numbers = np.array([self.result.loss, self.result.cross_entropy, self.result.sig_reg])
        return numbers.tobytes() + self.result.embedding.tobytes()


@asynccontextmanager
async def started(
    shapes: set[tuple[int, int]], device: str, precision: Precision
) -> AsyncIterator[dict[tuple[int, int], Entry]]:
    """A pool for each (workers, threads of each)."""

    def pool(num_workers: int, num_threads: int) -> WorkerPool:
        devices = [device] * num_workers
        return create_pool(devices, small_model=True, precision=precision, num_threads=num_threads)

    entries = {shape: Entry(*shape, pool(*shape)) for shape in sorted(shapes)}
    try:
        for entry in entries.values():
            await entry.pool.start()
        yield entries
    finally:
        await asyncio.gather(*(entry.pool.close() for entry in entries.values()))


async def compare(job: EvalJob, options: argparse.Namespace) -> bool:
    """Print one line per pool; whether all of equal thread count agreed to the bit."""
    num_threads, num_rounds = options.threads, options.rounds
    counts = range(1, options.max_workers + 1)
    device = "cuda:0" if options.device == "cuda" else options.device
    shapes = {(n, num_threads) for n in counts} | {(1, n * num_threads) for n in counts}
    async with started(shapes, device, options.precision) as entries:
        for _ in range(num_rounds + 1):  # the first one loads and warms up
            for entry in entries.values():
                await entry.run(job)
    print(
        f"{NUM_BATCHES} batches, small model, {device}, {options.precision}, {os.cpu_count()} cores, "
        f"best of {num_rounds + 1} rounds"
    )
    print(
        "workers x threads    seconds    one worker, as many threads    ratio   same bits   its bits   its loss apart"
    )
    reference = entries[1, num_threads]
    for n in counts:
        shared, alone = entries[n, num_threads], entries[1, n * num_threads]
        same = "yes" if shared.bits == reference.bits else "NO"
        others = "same" if alone.bits == reference.bits else "differ"
        print(
            f"{n:7} x {num_threads:<7} {shared.seconds:10.2f} {alone.seconds:30.2f}"
            f"{alone.seconds / shared.seconds:9.2f} {same:>12} {others:>10} {loss_apart(alone, reference):16.1e}"
        )
    return all(entries[n, num_threads].bits == reference.bits for n in counts)


def loss_apart(one: Entry, other: Entry) -> float:
    """Relative difference of two losses."""
    assert one.result is not None
    assert other.result is not None
    return abs(one.result.loss - other.result.loss) / other.result.loss


def main() -> None:
    """Run the comparison with what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of each worker")
    parser.add_argument("--max-workers", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="beside the first, which loads the weights")
    add_device_options(parser)
    options = parser.parse_args()
    check_device_options(parser, options)
    with tempfile.TemporaryDirectory() as folder:
        weights, data = Path(folder, "weights"), Path(folder, "data")
        weights.write_bytes(small_weights_bytes(SMALL_WEIGHTS))
        data.write_bytes(make_data({"pattern": "text", "size": DATA_BYTES}))
        job = EvalJob(str(weights), "weights", str(data), DATA_BYTES, seed=1)
        agreed = asyncio.run(compare(job, options))
    raise SystemExit(0 if agreed else 1)


if __name__ == "__main__":
    main()
