"""One evaluation on three nodes of this machine, one of which is killed in the middle: `make demo-cluster`.

Starts a Ray cluster of a head and three nodes, evaluates on one node, then on all three while a node is killed, and
shows that the numbers are the same to the bit. Takes about two minutes, and leaves nothing behind.
"""

import asyncio
import logging
import tempfile
import time
from pathlib import Path

from tests.ray_cluster import LocalCluster, local_cluster
from tests.recipe import SMALL_WEIGHTS, make_data, small_weights_bytes
from tests.workers.cluster.nodes import with_checksums
from workers.cluster.cluster_pool import ClusterPool
from workers.pool import create_cluster_pool
from workers.types import EvalJob, EvalProgress, EvalResult

NUM_BATCHES = 40


def write_job(folder: Path, num_batches: int = NUM_BATCHES) -> EvalJob:
    """The network's small model on data of so many batches."""
    weights, data = folder / "weights", folder / "data"
    weights.write_bytes(small_weights_bytes(SMALL_WEIGHTS))
    data.write_bytes(make_data({"pattern": "text", "size": num_batches * 16 * 1024}))
    return with_checksums(EvalJob(str(weights), "", str(data), data.stat().st_size, seed=7))


async def until_ready(pool: ClusterPool, num_workers: int) -> None:
    """Wait for so many workers."""
    while sum(status.ready for status in pool.status()) < num_workers:
        await asyncio.sleep(0.1)


async def evaluate(pool: ClusterPool, job: EvalJob, kill_after: float, cluster: LocalCluster) -> EvalResult:
    """Evaluate; when this share of the batches is done, kill the last node."""
    victim = cluster.nodes[-1]

    def on_progress(progress: EvalProgress) -> None:
        if progress.batches_done >= kill_after * progress.num_batches and victim.process.poll() is None:
            done = f"{progress.batches_done} of {progress.num_batches} batches"
            print(f"    {done} are done: node {victim.name} is killed")
            victim.raylet().kill()
            victim.process.kill()
            victim.process.wait()

    began = time.monotonic()
    result = await pool.evaluate(job, on_progress)
    print(f"    loss {result.loss!r}, {time.monotonic() - began:.1f} s")
    return result


async def demo(cluster: LocalCluster, folder: Path) -> bool:
    """Whether the bits are the same."""
    pool = create_cluster_pool(
        cluster.address, ["cpu"], small_model=True, data_dir=str(folder / "nodes"), data_max_bytes=1 << 30
    )
    assert isinstance(pool, ClusterPool)
    print("==> joining it, and starting a worker on its node")
    await pool.start()
    try:
        job = write_job(folder)
        print(f"==> an evaluation of {NUM_BATCHES} batches on one node")
        alone = await evaluate(pool, job, 2.0, cluster)
        print("==> two more nodes join")
        for name in ("node-2", "node-3"):
            await asyncio.to_thread(cluster.add_node, name)
        await until_ready(pool, 3)
        for status in pool.status():
            print(f"    {status.device} of {status.node}: ready")
        print("==> the same evaluation on three nodes")
        shared = await evaluate(pool, job, 0.4, cluster)
    finally:
        await pool.close()
    same = (alone.loss, alone.embedding.tobytes()) == (shared.loss, shared.embedding.tobytes())
    print("==> the same bits" if same else "==> THE BITS DIFFER")
    return same


def main() -> None:
    """Run the demo; exits with 1 when the bits differ."""
    logging.getLogger("workers").setLevel(logging.CRITICAL)  # what is lost is shown below
    print("==> starting a Ray cluster on this machine: a head, and one node", flush=True)
    with tempfile.TemporaryDirectory() as folder, local_cluster() as cluster:
        cluster.add_node("node-1")
        same = asyncio.run(demo(cluster, Path(folder)))
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    main()
