"""The pool on a real Ray cluster of this machine: the same bits, and what becomes of work when something dies.

Each test leaves a cluster of a head and two nodes. `benchmarks/cluster.py` kills and freezes more.
"""

import asyncio
import os
import random
import signal
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from tests.file_systems import mounted
from tests.ray_cluster import LocalCluster, LocalNode, local_cluster
from tests.recipe import SMALL_WEIGHTS, TEST_KEY, encrypt, make_data, small_weights_bytes
from tests.workers.cluster.nodes import with_checksums
from tests.workers.cluster.pools import pool_on
from tests.workers.processes.pools import is_alive, until
from workers.cluster.cluster_pool import ClusterPool
from workers.errors import DecryptionFailed, NoWorker, WorkerCrashed
from workers.pool import WorkerPool, create_pool
from workers.types import EvalJob, EvalResult

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.asyncio(loop_scope="module"),
]

NUM_BATCHES = 6
WAIT_SECONDS = 120.0


@dataclass
class Setting:
    """A cluster, a pool on it, and a job with the result that one machine gives."""

    cluster: LocalCluster
    pool: ClusterPool
    folder: Path
    job: EvalJob
    expected: EvalResult

    @property
    def nodes(self) -> list[LocalNode]:
        """Those with a worker."""
        return self.cluster.nodes[1:]

    async def until_whole(self, num_workers: int = 2) -> None:
        """Wait until so many workers are ready, and no other is there."""
        await until(lambda: [s.ready for s in self.pool.status()] == [True] * num_workers, WAIT_SECONDS)

    async def has_right_bits(self) -> bool:
        """Whether an evaluation gives the one machine's result."""
        return same_bits(await self.pool.evaluate(self.job), self.expected)


def same_bits(one: EvalResult, other: EvalResult) -> bool:
    return (one.loss, one.cross_entropy, one.sig_reg, one.embedding.tobytes()) == (
        (other.loss, other.cross_entropy, other.sig_reg, other.embedding.tobytes())
    )


def write_job(folder: Path, key: bytes | None = None, seed: int = 7) -> EvalJob:
    """`seed` of the weights."""
    weights, data = folder / "weights", folder / "data"
    clear = small_weights_bytes({**SMALL_WEIGHTS, "seed": seed})
    weights.write_bytes(encrypt(clear, key) if key else clear)
    data.write_bytes(make_data({"pattern": "text", "size": NUM_BATCHES * 16 * 1024}))
    return with_checksums(EvalJob(str(weights), "", str(data), data.stat().st_size, 7, key))


async def on_one_machine(job: EvalJob) -> EvalResult:
    pool: WorkerPool = create_pool(["cpu"], small_model=True, num_threads=1)
    await pool.start()
    try:
        return await pool.evaluate(job)
    finally:
        await pool.close()


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A head and two nodes; nothing of them is left."""
    with local_cluster() as started:
        for name in "ab":
            started.add_node(name)
        yield started
        known = [process for node in started.nodes for process in node.processes()]
    assert not [process for process in known if is_alive(process.pid)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def setting(cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Setting]:
    """The pool on that cluster."""
    folder = tmp_path_factory.mktemp("cluster")
    job = write_job(folder)
    pool = pool_on(cluster, folder / "nodes")
    await pool.start()
    try:
        yield Setting(cluster, pool, folder, job, await on_one_machine(job))
    finally:
        await pool.close()


# -- the same numbers


async def test_the_same_bits_as_on_one_machine(setting: Setting) -> None:
    await setting.until_whole()
    assert sorted(status.node for status in setting.pool.status()) == ["a", "b"]
    running = asyncio.create_task(setting.pool.evaluate(setting.job))
    await until(lambda: all(status.busy for status in setting.pool.status()), WAIT_SECONDS)
    assert same_bits(await running, setting.expected)


async def test_each_node_was_sent_the_files_and_nothing_else(setting: Setting) -> None:
    expected = {setting.job.weights_checksum, setting.job.data_checksum}
    for node in ("a", "b"):
        assert {path.name for path in (setting.folder / "nodes" / node).iterdir()} == expected


async def test_pieces_have_the_numbers_of_one_machine(setting: Setting) -> None:
    content = Path(setting.job.data_path).read_bytes()
    pieces = tuple(content[start : start + 1000 + start // 5] for start in range(0, 75_000, 5_000))
    job = EvalJob.of_pieces(
        pieces,
        weights_path=setting.job.weights_path,
        weights_checksum=setting.job.weights_checksum,
        seed=7,
    )
    local = create_pool(["cpu"], small_model=True, num_threads=1)
    await local.start()
    try:
        expected = await local.evaluate_pieces(job)
    finally:
        await local.close()
    found = await setting.pool.evaluate_pieces(job)
    assert len(found) == len(expected) == len(pieces)
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, EvalResult)
        assert isinstance(other, EvalResult)
        assert same_bits(one, other)


async def test_a_key_goes_with_the_job_alone(
    setting: Setting, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = write_job(tmp_path, TEST_KEY)
    assert same_bits(await setting.pool.evaluate(job), setting.expected)
    with pytest.raises(DecryptionFailed):
        await setting.pool.evaluate(replace(job, decryption_key=bytes(32)))
    logs = [path for path in setting.cluster.folder.rglob("*.*") if path.is_file()]
    assert logs
    seen = caplog.text.encode() + b"".join(path.read_bytes() for path in logs)
    for process in (each for node in setting.cluster.nodes for each in node.processes()):
        seen += " ".join(process.cmdline()).encode()
        seen += Path(f"/proc/{process.pid}/environ").read_bytes()
    for form in (TEST_KEY, TEST_KEY.hex().encode(), repr(TEST_KEY)[2:-1].encode(), b64encode(TEST_KEY)):
        assert form not in seen


async def test_the_token_of_the_cluster_is_not_handed_to_workers(setting: Setting) -> None:
    for worker in (each for node in setting.nodes for each in node.workers()):
        assert b"RAY_AUTH" not in Path(f"/proc/{worker.pid}/environ").read_bytes()


# -- what a node lacks


async def test_a_node_that_lost_its_files_is_sent_them_again(setting: Setting) -> None:
    await setting.until_whole()
    files = [
        setting.folder / "nodes" / "a" / each
        for each in (setting.job.weights_checksum, setting.job.data_checksum)
    ]
    for file in files:
        file.unlink()
    running = asyncio.create_task(setting.has_right_bits())
    await until(lambda: all(status.busy for status in setting.pool.status()), WAIT_SECONDS)
    assert await running
    assert all(file.exists() for file in files)


async def test_what_one_node_has_no_room_for_is_done_by_the_other(setting: Setting, tmp_path: Path) -> None:
    await setting.until_whole()
    job = write_job(tmp_path, seed=12)
    expected = await on_one_machine(job)
    with mounted(setting.folder / "nodes" / "b", "size=16k"):
        result = await setting.pool.evaluate(job)
        (trouble,) = [status.trouble for status in setting.pool.status() if status.node == "b"]
    assert same_bits(result, expected)
    assert {task.node for task in result.tasks} == {"a"}
    assert "disk" in trouble


# -- what dies


def worker_of(node: LocalNode) -> psutil.Process:
    return node.workers()[0]


def actor_of(node: LocalNode) -> psutil.Process:
    return node.actors()[0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("victim", [worker_of, actor_of])
async def test_work_goes_on_when_a_process_is_lost(
    setting: Setting, victim: Callable[[LocalNode], psutil.Process], number: int
) -> None:
    await setting.until_whole()
    running = asyncio.create_task(setting.has_right_bits())
    await until(lambda: all(status.busy for status in setting.pool.status()), WAIT_SECONDS)
    await asyncio.sleep(random.uniform(0.0, 0.5))
    lost = victim(random.choice(setting.nodes))
    os.kill(lost.pid, number)
    assert await running
    await until(lambda: not is_alive(lost.pid), WAIT_SECONDS)
    await setting.until_whole()
    assert await setting.has_right_bits()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_work_goes_on_when_a_node_is_lost_and_another_one_joins(setting: Setting, number: int) -> None:
    await setting.until_whole()
    lost = setting.nodes[-1]
    running = asyncio.create_task(setting.has_right_bits())
    await until(lambda: all(status.busy for status in setting.pool.status()), WAIT_SECONDS)
    workers = lost.workers()
    if number == signal.SIGKILL:
        os.kill(lost.raylet().pid, number)
    else:
        lost.freeze()
    assert await running
    await setting.until_whole(num_workers=1)
    assert setting.pool.nodes() == {node.name: node is not lost for node in setting.nodes}
    lost.thaw()  # cut off, and back: it finds that it was given up
    await until(lambda: not any(is_alive(worker.pid) for worker in workers), WAIT_SECONDS)
    lost.end()
    setting.cluster.nodes.remove(lost)
    await asyncio.to_thread(setting.cluster.add_node, lost.name)
    await setting.until_whole()
    assert setting.pool.nodes() == {"a": True, "b": True}
    assert await setting.has_right_bits()


async def test_cancelling_frees_every_worker(setting: Setting) -> None:
    await setting.until_whole()
    pids = {status.pid for status in setting.pool.status()}
    running = asyncio.create_task(setting.pool.evaluate(setting.job))
    await until(lambda: all(status.busy for status in setting.pool.status()), WAIT_SECONDS)
    running.cancel()
    await until(lambda: not any(status.busy for status in setting.pool.status()), WAIT_SECONDS)
    assert {status.pid for status in setting.pool.status()} == pids


async def test_when_rays_head_dies_work_fails_and_the_pool_joins_the_next_cluster(setting: Setting) -> None:
    await setting.until_whole()
    running = asyncio.create_task(setting.pool.evaluate(replace(setting.job, seed=9)))
    await until(lambda: all(status.busy for status in setting.pool.status()), WAIT_SECONDS)
    began = time.monotonic()
    for node in list(setting.cluster.nodes):
        node.end()
    with pytest.raises((WorkerCrashed, NoWorker)):
        await running
    assert time.monotonic() - began < WAIT_SECONDS
    with pytest.raises((WorkerCrashed, NoWorker)):
        await setting.pool.evaluate(setting.job)
    await asyncio.to_thread(setting.cluster.start_again, "a", "b")
    await setting.until_whole()
    assert await setting.has_right_bits()
