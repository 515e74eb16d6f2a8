"""Pools on a Ray cluster of this machine: timeouts long enough for a busy machine, and shorter than the service's."""

from pathlib import Path

from tests.ray_cluster import LocalCluster
from workers.cluster.cluster_pool import ClusterPool
from workers.cluster.messages import ClusterConfig
from workers.processes.timeouts import Timeouts
from workers.types import WorkerConfig

QUICK = Timeouts(
    frozen_seconds=6.0,
    progress_seconds=8.0,
    stop_seconds=3.0,
    terminate_seconds=1.0,
    restart_seconds=0.1,
    max_restart_seconds=1.0,
)


def pool_on(cluster: LocalCluster, folder: Path, *, allow_open: bool = False) -> ClusterPool:
    """A pool of small-model CPU workers of one thread, one for each node."""
    config = ClusterConfig(
        address=cluster.address,
        devices="cpu",
        allow_open=allow_open,
        data_dir=str(folder),
        data_max_bytes=1 << 30,
        entry_module="workers.worker.main",
        silence_seconds=5.0,
        fence_seconds=8.0,
    )
    return ClusterPool(config, WorkerConfig("", small_model=True, num_threads=1), QUICK)
