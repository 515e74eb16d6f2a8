"""With the limits of a service, on a cluster as `ray start` makes it: what is frozen is found by ourselves, in time.

Without health checks that are tuned Ray tells of a frozen raylet after a minute, and of a frozen actor never.
"""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.ray_cluster import LocalCluster, LocalNode, local_cluster
from tests.recipe import SMALL_WEIGHTS, make_data, small_weights_bytes
from tests.workers.cluster.nodes import with_checksums
from tests.workers.processes.pools import until
from workers.cluster.cluster_pool import ClusterPool
from workers.cluster.messages import ClusterConfig
from workers.errors import WorkerCrashed
from workers.pool import create_pool
from workers.types import EvalJob, EvalResult, WorkerConfig

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]

NUM_BATCHES = 8
WAIT_SECONDS = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head and two nodes, with Ray's own health checks."""
    with local_cluster(tuned=False) as started:
        for name in "ab":
            started.add_node(name)
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ClusterPool]:
    """On both nodes, with the limits that a service has."""
    folder = str(tmp_path_factory.mktemp("nodes"))
    config = ClusterConfig(cluster.address, "cpu", False, folder, 1 << 30, "workers.worker.main")
    started = ClusterPool(config, WorkerConfig("", small_model=True, num_threads=1))
    await started.start()
    try:
        yield started
    finally:
        await started.close()


_weights_seeds = itertools.count(21)


def job_of_new_weights(folder: Path) -> EvalJob:
    """Of weights that no node has yet."""
    weights, data = folder / "weights", folder / "data"
    weights.write_bytes(small_weights_bytes({**SMALL_WEIGHTS, "seed": next(_weights_seeds)}))
    data.write_bytes(make_data({"pattern": "text", "size": NUM_BATCHES * 16 * 1024}))
    return with_checksums(EvalJob(str(weights), "", str(data), data.stat().st_size, 7))


async def on_this_machine(job: EvalJob) -> EvalResult:
    pool = create_pool(["cpu"], small_model=True, num_threads=1)
    await pool.start()
    try:
        return await pool.evaluate(job)
    finally:
        await pool.close()


def worker_of(node: LocalNode) -> psutil.Process:
    return node.workers()[0]


def actor_of(node: LocalNode) -> psutil.Process:
    return node.actors()[0]


def raylet_of(node: LocalNode) -> psutil.Process:
    return node.raylet()


async def test_while_the_heads_raylet_is_frozen_what_needs_no_new_files_goes_on(
    cluster: LocalCluster, pool: ClusterPool, tmp_path: Path
) -> None:
    known = job_of_new_weights(tmp_path)
    expected = await pool.evaluate(known)
    (tmp_path / "other").mkdir()
    new = job_of_new_weights(tmp_path / "other")
    head = cluster.nodes[0].raylet()
    head.suspend()
    try:
        with pytest.raises(WorkerCrashed, match="raylet on the head"):
            await pool.evaluate(new)
        result = await pool.evaluate(known)
    finally:
        head.resume()
    assert (result.loss, result.embedding.tobytes()) == (expected.loss, expected.embedding.tobytes())
    assert (await pool.evaluate(new)).num_batches == NUM_BATCHES


def last_death(pool: ClusterPool, node: LocalNode) -> str:
    """How the worker of the node ended; empty when it did not, or when Ray says that the node is gone."""
    return next((status.last_death for status in pool.status() if status.node == node.name), "")


@pytest.mark.parametrize(
    ("victim", "found_by"),
    [
        (worker_of, "froze"),
        (actor_of, "gave no answer"),
        (raylet_of, "raylet of its node is stopped"),  # the last: its node does not come back
    ],
    ids=["worker", "actor", "raylet"],
)
async def test_what_is_frozen_is_found_and_its_work_done_by_the_other_node(
    cluster: LocalCluster,
    pool: ClusterPool,
    tmp_path: Path,
    victim: Callable[[LocalNode], psutil.Process],
    found_by: str,
) -> None:
    job = job_of_new_weights(tmp_path)
    expected = await on_this_machine(job)
    await until(lambda: [status.ready for status in pool.status()] == [True, True], WAIT_SECONDS)
    node = cluster.nodes[1]
    running = asyncio.create_task(pool.evaluate(job))
    await until(lambda: all(status.busy for status in pool.status()), WAIT_SECONDS)
    os.kill(victim(node).pid, signal.SIGSTOP)
    await until(lambda: found_by in last_death(pool, node), WAIT_SECONDS)
    result = await running
    assert (result.loss, result.embedding.tobytes()) == (expected.loss, expected.embedding.tobytes())
