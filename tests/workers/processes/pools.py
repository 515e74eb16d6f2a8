"""Pools and jobs for the tests of the process pool."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from workers.pool import WorkerPool
from workers.processes.process_pool import ProcessPool
from workers.processes.timeouts import Timeouts
from workers.types import EvalJob, WorkerConfig

MISBEHAVING = "tests.workers.processes.misbehaving"
SHORT_TIMEOUTS = Timeouts(
    heartbeat_seconds=0.1,
    frozen_seconds=2.0,
    progress_seconds=2.0,
    start_seconds=30.0,
    self_test_seconds=10.0,
    stop_seconds=0.5,
    terminate_seconds=0.3,
    restart_seconds=0.05,
    max_restart_seconds=0.5,
)
BYTES_PER_BATCH = 16 * 1024


@asynccontextmanager
async def misbehaving_pool(
    configs: Sequence[WorkerConfig] = (WorkerConfig("cpu", num_threads=1),),
    timeouts: Timeouts = SHORT_TIMEOUTS,
) -> AsyncIterator[ProcessPool]:
    """A pool of `tests.workers.processes.misbehaving` workers, started; closed after, with no process left."""
    pool = ProcessPool(configs, timeouts, MISBEHAVING)
    try:
        await pool.start()
        yield pool
    finally:
        known = pids(pool)
        await pool.close()
    assert not [pid for pid in known if is_alive(pid)]


def cpus(num_workers: int) -> list[WorkerConfig]:
    """That many CPU workers of one thread each."""
    return [WorkerConfig("cpu", num_threads=1)] * num_workers


def job(kind: str, folder: Path, num_batches: int = 10, seed: int = 0, key: bytes | None = None) -> EvalJob:
    """A job whose weights make a worker misbehave in the way `kind` names; any other kind is good."""
    mark = folder / kind
    mark.mkdir(exist_ok=True)
    return EvalJob(str(mark), kind, "/dev/null", num_batches * BYTES_PER_BATCH, seed, decryption_key=key)


def job_of_pieces(kind: str, folder: Path, num_pieces: int = 4, seed: int = 0) -> EvalJob:
    """The same with so many pieces."""
    mark = folder / kind
    mark.mkdir(exist_ok=True)
    pieces = tuple(f"piece {i}".encode() for i in range(num_pieces))
    return EvalJob.of_pieces(pieces, weights_path=str(mark), weights_checksum=kind, seed=seed)


def right_cross_entropy(num_batches: int = 10, seed: int = 0) -> float:
    """What a worker that does its job gives, however often it was interrupted."""
    return (num_batches - 1) / 2 + seed


def pids(pool: WorkerPool) -> list[int]:
    """Of the workers that live now."""
    return [status.pid for status in pool.status() if status.pid]


def is_alive(pid: int) -> bool:
    """Whether there is such a process that is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something that must come; fails when it does not."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


async def until_whole(pool: WorkerPool, seconds: float = 20.0) -> None:
    """Wait until every worker is ready and none is busy."""
    await until(lambda: all(status.ready and not status.busy for status in pool.status()), seconds)


def send_signal(pool: ProcessPool, number: int) -> int:
    """Send a signal to the first worker that lives; returns its pid."""
    pid = pids(pool)[0]
    os.kill(pid, number)
    return pid
