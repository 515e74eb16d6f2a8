"""A node that reaches the head alone, is cut off from it, and comes back."""

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray_cluster import Namespace, local_cluster, network_namespace
from tests.recipe import SMALL_WEIGHTS, make_data, small_weights_bytes
from tests.workers.cluster.nodes import with_checksums
from tests.workers.cluster.pools import pool_on
from tests.workers.processes.pools import is_alive, until
from workers.types import EvalJob

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

WAIT_SECONDS = 120.0


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A network that reaches this machine alone."""
    with contextlib.ExitStack() as stack:
        try:
            made = stack.enter_context(network_namespace())
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("no network namespace can be made here: that needs root and iproute2")
        yield made


async def test_a_node_that_reaches_the_head_alone_works_and_does_no_harm_once_it_was_cut_off(
    namespace: Namespace, tmp_path: Path
) -> None:
    weights, data = tmp_path / "weights", tmp_path / "data"
    weights.write_bytes(small_weights_bytes(SMALL_WEIGHTS))
    data.write_bytes(make_data({"pattern": "text", "size": 20 * 16 * 1024}))
    job = with_checksums(EvalJob(str(weights), "", str(data), data.stat().st_size, 7))
    with local_cluster(host=namespace.host) as cluster:
        far = await asyncio.to_thread(cluster.add_node, "far", namespace)
        pool = pool_on(cluster, tmp_path / "nodes")
        await pool.start()
        try:
            alone = await pool.evaluate(job)  # it was sent everything by the head
            await asyncio.to_thread(cluster.add_node, "near")
            await until(lambda: [s.ready for s in pool.status()] == [True, True], WAIT_SECONDS)
            running = asyncio.create_task(pool.evaluate(job))
            await until(lambda: all(status.busy for status in pool.status()), WAIT_SECONDS)
            (worker,) = far.workers()
            namespace.cut()
            shared = await running
            assert (shared.loss, shared.embedding.tobytes()) == (alone.loss, alone.embedding.tobytes())
            await until(lambda: not is_alive(worker.pid), WAIT_SECONDS)  # it heard nothing of the head
            namespace.mend()
            again = await pool.evaluate(job)
            assert (again.loss, again.embedding.tobytes()) == (alone.loss, alone.embedding.tobytes())
        finally:
            await pool.close()
