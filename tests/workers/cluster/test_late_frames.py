"""What a node still sends for a worker that was given up. No Ray, and no worker is started."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from workers.cluster.cluster_pool import ClusterPool
from workers.cluster.messages import ClusterConfig, Frames, ProcessEnded
from workers.cluster.remote_process import RemoteProcess
from workers.message_codec import encode
from workers.messages import BatchDone
from workers.types import BatchScore, WorkerConfig

RESULT = BatchDone(1, BatchScore(0, 1.0, 1.0, np.zeros(2, np.float32), False))


@pytest.fixture
def pool(tmp_path: Path) -> ClusterPool:
    config = ClusterConfig("local", "cpu", False, str(tmp_path), 1 << 20, "workers.worker.main")
    return ClusterPool(config, WorkerConfig(""))


def session(pool: ClusterPool) -> RemoteProcess:
    """One more session of the pool."""
    process = RemoteProcess(next(pool._session_numbers), "/data", None)  # type: ignore[arg-type]
    pool._sessions[process.session] = process
    return process


def num_received(process: RemoteProcess) -> int:
    return process._inbox.qsize()


async def test_results_of_an_ended_session_are_dropped(pool: ClusterPool) -> None:
    lost = session(pool)
    pool._act_on(Frames(lost.session, encode(RESULT)))
    assert num_received(lost) == 1
    pool._act_on(ProcessEnded(lost.session, -9, was_ended_here=True, is_stuck=False))
    following = session(pool)
    assert following.session != lost.session
    for _ in range(2):
        assert pool._act_on(Frames(lost.session, encode(RESULT)))  # the connector goes on
    assert (num_received(lost), num_received(following)) == (1, 0)
    pool._act_on(Frames(following.session, encode(RESULT)))
    assert num_received(following) == 1


async def test_results_that_come_after_the_cluster_was_lost_are_dropped(pool: ClusterPool) -> None:
    lost = session(pool)
    pool._lose_all("the process that talks to Ray has ended")
    before = num_received(lost)  # that its pipe is closed
    pool._act_on(Frames(lost.session, encode(RESULT)))
    assert num_received(lost) == before
    await asyncio.gather(*pool._removals)
