"""Which nodes a pool speaks of, by what its connector says of their devices. No Ray, and no worker is started."""

import asyncio
from pathlib import Path

import pytest

from workers.cluster import cluster_pool
from workers.cluster.cluster_pool import ClusterPool
from workers.cluster.messages import ClusterConfig, DeviceJoined, DeviceLeft, DeviceRefused
from workers.types import WorkerConfig


@pytest.fixture
def pool(tmp_path: Path) -> ClusterPool:
    config = ClusterConfig("local", "cpu", False, str(tmp_path), 1 << 20, "workers.worker.main")
    return ClusterPool(config, WorkerConfig(""))


def joined(node: str, life: int = 1) -> DeviceJoined:
    """The device of a node; Ray gives a node that joins again another id."""
    return DeviceJoined(f"{node}{life}/cpu/0", node, "cpu", "cpu", 1, 1, 1 << 30, "2.13.0+cpu", "/data")


async def test_a_node_that_left_is_remembered_until_it_is_back(pool: ClusterPool) -> None:
    assert pool.nodes() == {}
    for node in "ab":
        pool._act_on(joined(node))
    assert pool.nodes() == {"a": True, "b": True}
    pool._act_on(DeviceLeft("b1/cpu/0", "node b left the cluster"))
    assert pool.nodes() == {"a": True, "b": False}
    pool._act_on(joined("b", life=2))
    assert pool.nodes() == {"a": True, "b": True}


async def test_a_node_whose_device_is_refused_is_there(pool: ClusterPool) -> None:
    pool._act_on(DeviceRefused("a1/cpu/0", "a", "cpu", "it has version 2 of soma-eval"))
    assert pool.nodes() == {"a": True}
    pool._act_on(DeviceLeft("a1/cpu/0", "node a left the cluster"))
    assert pool.nodes() == {"a": False}


async def test_no_node_is_there_when_the_cluster_is_lost(pool: ClusterPool) -> None:
    pool._act_on(joined("a"))
    pool._act_on(DeviceRefused("b1/cpu/0", "b", "cpu", "it has version 2 of soma-eval"))
    pool._lose_all("the process that talks to Ray has ended")
    assert pool.nodes() == {"a": False, "b": False}
    await asyncio.gather(*pool._removals)
    assert pool.status() == []


async def test_a_node_is_forgotten_in_the_end(pool: ClusterPool, monkeypatch: pytest.MonkeyPatch) -> None:
    pool._act_on(joined("a"))
    pool._act_on(DeviceLeft("a1/cpu/0", "node a left the cluster"))
    monkeypatch.setattr(cluster_pool, "_REMEMBERED_SECONDS", -1.0)
    assert pool.nodes() == {}
