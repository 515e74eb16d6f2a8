"""One simulated day: the head with the real scheduler and the real pool, and nodes that come, go and compute."""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest.mock import patch

from benchmarks.network_day import virtual_clock
from benchmarks.network_day.head import AllHere, Downloads, Head, HeadFiles, Outcomes
from benchmarks.network_day.service_times import (
    DAY_SECONDS,
    GB,
    H100_FLOAT32,
    HASH_BYTES_PER_SECOND,
    NODE_AWAY_SECONDS,
    NODE_LOSS_NOTICED_SECONDS,
    PUBLISHER_BYTES_PER_SECOND,
    DeviceTimes,
)
from benchmarks.network_day.shared_resource import SharedResource
from benchmarks.network_day.simulated_node import SimulatedNode
from benchmarks.network_day.simulated_worker import Compute, SimulatedWorker
from benchmarks.network_day.workload import Submission, Workload, submissions, weights_name
from service.scoring.scheduler import Scheduler
from workers.cluster.file_sender import MAX_BLOCKS
from workers.processes import dispatch, process_pool
from workers.processes.process_pool import ProcessPool
from workers.processes.supervisor import Place, Supervisor
from workers.processes.timeouts import Timeouts
from workers.types import EvalJob, WorkerConfig

GBIT = 10**9 / 8
_NEVER = 10.0 * DAY_SECONDS


@dataclass(frozen=True, slots=True)
class Cluster:
    """The machines."""

    num_nodes: int = 1
    """Of one GPU each."""
    device: DeviceTimes = H100_FLOAT32
    head_link: float = 10 * GBIT
    """Of the head, to the nodes and to the internet, in bytes per second each way."""
    node_link: float = 10 * GBIT
    """Of each node, in bytes per second."""
    head_cache_bytes: int = 2_000 * GB
    node_cache_bytes: int = 2_000 * GB
    """`--cache-max-bytes` and `--node-cache-max-bytes`, which are 100 GiB where nobody sets them."""
    losses_per_node: float = 0.0
    """Times a day that a node is lost."""
    cores: float | None = None
    """On which all nodes compute, where they are on one machine."""
    queue_size: int = 64
    """`--queue-size`; at least twice the number of nodes."""
    weights_are_here: bool = False
    """Whether the head has all weights from the start."""
    nodes_have_weights: bool = False
    """Whether the nodes have as many of them as they may keep."""
    seconds_per_file: float = 0.02
    """For a node to be sent one, on top of the link's. Assumed; `check` found 40 to 75 ms on a busy machine."""
    self_tests: bool = True
    """Whether an idle worker takes its self-test once a minute."""
    most_steps: int = 4
    """Bursts in which a task reports its batches."""


@dataclass(slots=True)
class Day:
    """What happened."""

    outcomes: Outcomes
    seconds: float
    """From the first moment to the last result."""
    gpu_busy_seconds: float
    """Of all devices: with a task whose files are there."""
    num_sequences: int
    """That were computed, those of lost tasks included."""
    num_loads: int
    """Of weights onto a device."""
    num_tasks: int
    """Ranges of batches that were handed out."""
    bytes_to_nodes: float
    bytes_downloaded: float
    link_busy: float
    """Share of the time in which the head's link to the nodes was used, from 0 to 1."""
    dispatch_seconds: float
    """Of this machine's processor, that the pool's dispatch took. Real, not virtual."""
    status_seconds: float
    """The same, of one `status()` of the pool."""
    num_losses: int = 0


@dataclass(eq=False)
class _Lendable:
    """One node's place in the pool."""

    node: SimulatedNode
    compute: Compute
    supervisor: Supervisor | None = None
    is_in_pool: bool = False
    workers: list[SimulatedWorker] = field(default_factory=list)
    """One after the other."""


def simulate(load: Workload, cluster: Cluster) -> Day:
    """Run the workload on the cluster, in virtual time."""
    return virtual_clock.run(_Simulation(load, cluster).run())


class _Simulation:
    def __init__(self, load: Workload, cluster: Cluster) -> None:
        self._load = load
        self._cluster = cluster
        self._link = SharedResource(
            cluster.head_link, min(cluster.node_link, HASH_BYTES_PER_SECOND), most_users=MAX_BLOCKS
        )
        self._internet = SharedResource(cluster.head_link, PUBLISHER_BYTES_PER_SECOND)
        self._cores = SharedResource(cluster.cores, 1.0) if cluster.cores else None
        self._num_losses = 0

    async def run(self) -> Day:
        """The whole of it."""
        cluster, load = self._cluster, self._load
        timeouts = Timeouts(self_test_interval_seconds=60.0 if cluster.self_tests else _NEVER)
        pool = ProcessPool((), timeouts, may_grow=True)
        nodes = [self._lend(pool, f"node-{n}") for n in range(cluster.num_nodes)]
        await pool.start()
        scheduler = scheduler_of(
            lambda: sum(node.is_in_pool for node in nodes),
            cluster.head_cache_bytes,
            cluster.queue_size,
        )
        head = Head(scheduler, pool, self._files(), partial(_job_of, load))
        began = asyncio.get_running_loop().time()
        with _measured_dispatch() as dispatch_seconds:
            losing = [asyncio.create_task(self._lose_again_and_again(pool, each)) for each in nodes]
            outcomes = await head.answer_all(submissions(load))
            for task in losing:
                task.cancel()
            await asyncio.gather(*losing, return_exceptions=True)
        seconds = asyncio.get_running_loop().time() - began
        status_seconds = _seconds_of(pool.status)
        await pool.close()
        workers = [worker for node in nodes for worker in node.workers]
        return Day(
            outcomes,
            seconds,
            gpu_busy_seconds=sum(worker.busy_seconds for worker in workers),
            num_sequences=sum(worker.num_sequences for worker in workers),
            num_loads=sum(worker.num_loads for worker in workers),
            num_tasks=sum(worker.num_tasks for worker in workers),
            bytes_to_nodes=self._link.total,
            bytes_downloaded=self._internet.total,
            link_busy=self._link.busy_seconds / seconds if seconds else 0.0,
            dispatch_seconds=dispatch_seconds[0],
            status_seconds=status_seconds,
            num_losses=self._num_losses,
        )

    def _files(self) -> HeadFiles:
        if self._cluster.weights_are_here:
            return AllHere(self._load.weights_bytes)
        return Downloads(self._internet, self._load.weights_bytes, self._cluster.head_cache_bytes)

    def _lend(self, pool: ProcessPool, name: str) -> _Lendable:
        """A further node, whose worker the pool starts."""
        compute = self._cores.use if self._cores else asyncio.sleep
        cluster = self._cluster
        node = SimulatedNode(name, self._link, cluster.node_cache_bytes, cluster.seconds_per_file)
        if cluster.nodes_have_weights:
            num_kept = min(self._load.num_models, cluster.node_cache_bytes // self._load.weights_bytes)
            node.files.update((weights_name(n, 0), self._load.weights_bytes) for n in range(num_kept))
        lent = _Lendable(node, compute)
        self._join(pool, lent)
        return lent

    def _join(self, pool: ProcessPool, lent: _Lendable) -> None:
        async def spawn(config: WorkerConfig) -> SimulatedWorker:
            worker = SimulatedWorker(self._cluster.device, lent.node, lent.compute, self._cluster.most_steps)
            lent.workers.append(worker)
            return worker

        lent.supervisor, lent.is_in_pool = (
            pool.add_worker(WorkerConfig("cuda:0"), spawn, Place(lent.node.name)),
            True,
        )

    async def _lose_again_and_again(self, pool: ProcessPool, lent: _Lendable) -> None:
        """The node dies at random moments, is given up a moment later, and comes back with its files."""
        if not self._cluster.losses_per_node:
            return
        generator = random.Random(f"{self._load.seed} {lent.node.name}")
        while True:
            await asyncio.sleep(generator.expovariate(self._cluster.losses_per_node / DAY_SECONDS))
            self._num_losses += 1
            lent.workers[-1].stop_work()
            lent.node.cut_off()
            await asyncio.sleep(NODE_LOSS_NOTICED_SECONDS)
            assert lent.supervisor is not None
            lent.is_in_pool = False
            await pool.remove_worker(lent.supervisor, "its node was lost")
            await asyncio.sleep(NODE_AWAY_SECONDS)
            self._join(pool, lent)


def scheduler_of(
    num_workers: Callable[[], int],
    kept_bytes: int,
    queue_size: int = 64,
) -> Scheduler:
    """As `service.lifespan` makes it; the queue is longer where that would leave workers idle."""
    return Scheduler(
        queue_size=max(queue_size, 2 * num_workers()),
        num_workers=num_workers,
        max_downloads=16,
        kept_bytes=kept_bytes,
        timeout_seconds=3600.0,
    )


def _job_of(load: Workload, submission: Submission, checksum: str) -> EvalJob:
    return EvalJob(
        weights_path=f"/weights/{checksum}",
        weights_checksum=checksum,
        weights_size=load.weights_bytes,
        data_path=f"/data/{submission.number}",
        data_checksum=f"data-{submission.number}",
        data_size=submission.data_bytes,
        seed=submission.number,
    )


def _seconds_of(call: Callable[[], object], rounds: int = 20) -> float:
    began = time.thread_time()
    for _ in range(rounds):
        call()
    return (time.thread_time() - began) / rounds


@contextmanager
def _measured_dispatch() -> Iterator[list[float]]:
    """Counts the seconds that the pool takes to choose who does what next."""
    seconds = [0.0]

    def measured(choose: Any) -> Any:
        def choose_and_count(*arguments: Any) -> Any:
            began = time.thread_time()
            try:
                return choose(*arguments)
            finally:
                seconds[0] += time.thread_time() - began

        return choose_and_count

    with (
        patch.object(process_pool, "next_assignment", measured(dispatch.next_assignment)),
        patch.object(process_pool, "next_to_load_ahead", measured(dispatch.next_to_load_ahead)),
    ):
        yield seconds
