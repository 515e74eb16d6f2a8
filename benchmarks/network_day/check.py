"""Whether the simulation is right: the same load on real Ray nodes of this machine, and predicted from one of them.

Service times are measured on one node that has nothing else to do; then the load comes all at once to 1, 2 and 3
nodes. Twice: with workers that take a known time (`sleeping_worker`), so that three nodes are as independent as on
three machines, and with the small model, where all nodes share the cores of this machine, as the simulation has it. How
much of these was left for workers is measured meanwhile: what other processes took, and what Ray and the pool did.
"""

import asyncio
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.demo_cluster import until_ready
from benchmarks.network_day.day import Cluster, scheduler_of, simulate
from benchmarks.network_day.head import AllHere, Head, Outcomes
from benchmarks.network_day.service_times import DeviceTimes
from benchmarks.network_day.workload import Submission, Workload, submissions
from tests.ray_cluster import LocalCluster, local_cluster
from tests.recipe import SMALL_WEIGHTS, make_data, small_weights_bytes
from tests.workers.cluster.nodes import checksum_of
from workers.cluster.cluster_pool import ClusterPool
from workers.cluster.messages import ClusterConfig
from workers.types import EvalJob, EvalResult, WorkerConfig

GOAL = 0.15
"""How far a prediction may be off."""
NUM_NODES = (1, 2, 3)
_NUM_RESIDENT = 6
"""Of twelve weights, so that some are evicted, as on a GPU."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of worker, and how much it is given."""

    name: str
    entry_module: str
    computes: bool
    """On the cores that all nodes share."""
    num_submissions: int
    most_data_bytes: int


SLEEPING = Kind(
    "workers that take a known time", "benchmarks.network_day.sleeping_worker", False, 16, 100_000
)
COMPUTING = Kind("the small model", "workers.worker.main", True, 8, 30_000)


@dataclass(frozen=True, slots=True)
class Row:
    """What was predicted, and what took place."""

    cluster: Cluster
    predicted: Outcomes
    real: Outcomes

    @property
    def ratios(self) -> tuple[float, float]:
        """Predicted by real: of the time for all, and of the mean response."""
        return (
            self.predicted.last_at / self.real.last_at,
            statistics.mean(self.predicted.response_seconds) / statistics.mean(self.real.response_seconds),
        )


class CoresLeft:
    """What workers could have had of this machine's cores, between two moments."""

    def __init__(self, cluster: LocalCluster) -> None:
        self._cluster = cluster
        self._began = time.monotonic()
        self._all, self._ours = _all_busy_seconds(), self._seconds_of_workers()

    @property
    def worker_seconds(self) -> float:
        """Of a core, that the workers have used since."""
        return self._seconds_of_workers() - self._ours

    def now(self) -> float:
        """How many cores, on average: those that nothing else was using."""
        others = _all_busy_seconds() - self._all - self.worker_seconds
        return (os.cpu_count() or 1) - others / (time.monotonic() - self._began)

    def _seconds_of_workers(self) -> float:
        workers = [worker for node in self._cluster.nodes for worker in node.workers()]
        return sum(sum(worker.cpu_times()[:2]) for worker in workers)


def _all_busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait - times.guest - times.guest_nice)


class Files:
    """Weights and data of the load, as the head has them."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        self._weights: dict[str, Path] = {}
        self._checksums: dict[Path, str] = {}

    def job(self, submission: Submission, weights_name: str) -> EvalJob:
        """One model on the submission's data."""
        if weights_name not in self._weights:
            content = small_weights_bytes({**SMALL_WEIGHTS, "seed": 7 + 1000 * len(self._weights)})
            self._weights[weights_name] = self._write(f"weights-{len(self._weights)}", content)
        weights = self._weights[weights_name]
        data = self._folder / f"data-{submission.number}"
        if data not in self._checksums:
            content = make_data({"pattern": "text", "size": submission.data_bytes})
            content = submission.number.to_bytes(4, "big") + content[4:]
            self._write(data.name, content)
        return EvalJob(
            weights_path=str(weights),
            weights_checksum=self._checksums[weights],
            weights_size=weights.stat().st_size,
            data_path=str(data),
            data_checksum=self._checksums[data],
            data_size=submission.data_bytes,
            seed=submission.number,
        )

    def _write(self, name: str, content: bytes) -> Path:
        path = self._folder / name
        path.write_bytes(content)
        self._checksums[path] = checksum_of(content)
        return path


def check(kind: Kind) -> list[Row]:
    """Measure, run and predict; one row for each number of nodes."""
    weights_bytes = len(small_weights_bytes(SMALL_WEIGHTS))
    load = Workload(
        seconds=0,
        num_submissions=kind.num_submissions,
        least_data_bytes=10_000,
        most_data_bytes=kind.most_data_bytes,
        num_targets=4,
        num_models=12,
        weights_bytes=weights_bytes,
    )
    with tempfile.TemporaryDirectory() as name, local_cluster() as cluster:
        cluster.add_node("1")
        measured, real = asyncio.run(_measure_and_run(kind, load, cluster, Path(name)))
    rows = []
    for n, (outcomes, cores) in real.items():  # only now: a virtual clock is everybody's
        as_it_was = replace(measured, num_nodes=n, cores=cores if kind.computes else None)
        rows.append(Row(as_it_was, simulate(load, as_it_was).outcomes, outcomes))
    return rows


async def _measure_and_run(
    kind: Kind, load: Workload, cluster: LocalCluster, folder: Path
) -> tuple[Cluster, dict[int, tuple[Outcomes, float]]]:
    """The service times of one node; by number of nodes, what became of the load and how many cores were left."""
    real: dict[int, tuple[Outcomes, float]] = {}
    measured = Cluster()
    for n in NUM_NODES:
        if n > 1:
            await asyncio.to_thread(cluster.add_node, str(n))
        # A pool of its own, with a folder of its own on the nodes: no weights are there yet.
        pool = _pool(kind, cluster, folder / f"nodes-{n}", load.weights_bytes)
        await pool.start()
        await until_ready(pool, n)
        try:
            if n == 1:
                measured = await measure(kind, pool, load, cluster, folder / "measured")
            left = CoresLeft(cluster)
            outcomes = await _run(pool, load, folder / f"run-{n}")
            real[n] = outcomes, left.now()
        finally:
            await pool.close()
    return measured, real


def _pool(kind: Kind, cluster: LocalCluster, folder: Path, weights_bytes: int) -> ClusterPool:
    config = ClusterConfig(cluster.address, "cpu", False, str(folder), 64 << 30, kind.entry_module)
    worker = WorkerConfig("", small_model=True, num_threads=1, memory_budget_bytes=_budget(weights_bytes))
    return ClusterPool(config, worker)


def _budget(weights_bytes: int) -> int:
    return _NUM_RESIDENT * weights_bytes + weights_bytes // 2


async def _run(pool: ClusterPool, load: Workload, folder: Path) -> Outcomes:
    files = Files(folder)
    for submission in submissions(load):  # written beforehand, as a service has them
        for weights in submission.weights:
            files.job(submission, weights)
    head = Head(
        scheduler_of(lambda: len(pool.status()), 1 << 40), pool, AllHere(load.weights_bytes), files.job
    )
    return await head.answer_all(submissions(load))


async def measure(
    kind: Kind, pool: ClusterPool, load: Workload, cluster: LocalCluster, folder: Path
) -> Cluster:
    """The service times of one node that has nothing else to do, as a cluster of it.

    What computes is measured in seconds of a core, which others cannot lengthen by taking theirs.
    """
    left = CoresLeft(cluster)
    files = Files(folder)
    new_weights: list[EvalResult] = []
    known_weights: list[EvalResult] = []
    for number in range(4):  # always on new data
        for results, data in ((new_weights, 2 * number), (known_weights, 2 * number + 1)):
            submission = Submission(data, 0.0, kind.most_data_bytes, ())
            results.append(await pool.evaluate(files.job(submission, f"measured-{number}")))
    results = new_weights + known_weights
    per_task = statistics.median(gap for result in results for gap in _gaps(result))
    begun = statistics.median(result.tasks[0].began for result in known_weights)
    load_seconds = statistics.median(result.load_seconds for result in new_weights)
    per_sequence = _seconds_per_sequence(results)
    if kind.computes:
        per_sequence = left.worker_seconds / sum(result.num_sequences for result in results)
    return Cluster(
        device=DeviceTimes(
            name="measured on one node",
            per_sequence=per_sequence,
            per_batch=0.0,
            per_task=per_task,
            load_bytes_per_second=load.weights_bytes / load_seconds,
            start=1.0,
            self_test=0.0,
            resident_bytes=_budget(load.weights_bytes),
        ),
        seconds_per_file=max(0.0, begun - per_task),
        weights_are_here=True,
        self_tests=False,
        most_steps=64,
    )


def _gaps(result: EvalResult) -> list[float]:
    """Seconds from the last batch of each task to the start of the next, of a lone worker."""
    return [after.began - before.ended for before, after in itertools.pairwise(result.tasks)]


def _seconds_per_sequence(results: list[EvalResult]) -> float:
    seconds = sum(task.ended - (task.loaded or task.began) for result in results for task in result.tasks)
    return seconds / sum(result.num_sequences for result in results)


def main(kinds: Sequence[Kind] = (SLEEPING, COMPUTING)) -> bool:
    """Print both tables; whether every prediction is within the goal."""
    good = True
    for kind in kinds:
        rows = check(kind)
        device = rows[0].cluster.device
        print(
            f"measured on one node: {1000 * device.per_sequence:.1f} ms a sequence, "
            f"{1e-6 * device.load_bytes_per_second:.2f} MB/s loaded, {1000 * device.per_task:.1f} ms a task, "
            f"{1000 * rows[0].cluster.seconds_per_file:.1f} ms a file"
        )
        table = Table(
            *(
                "nodes",
                "cores left",
                "time for all, real",
                "predicted",
                "ratio",
                "mean response, real",
                "predicted",
                "ratio",
            ),
            title=f"{kind.num_submissions} submissions of 3 models at once: {kind.name}",
        )
        for row in rows:
            mean = [statistics.mean(each.response_seconds) for each in (row.real, row.predicted)]
            table.add_row(
                str(row.cluster.num_nodes),
                f"{row.cluster.cores:.2f}" if row.cluster.cores else "none used",
                f"{row.real.last_at:.1f} s",
                f"{row.predicted.last_at:.1f} s",
                f"{row.ratios[0]:.2f}",
                f"{mean[0]:.1f} s",
                f"{mean[1]:.1f} s",
                f"{row.ratios[1]:.2f}",
            )
            good = good and all(abs(ratio - 1) <= GOAL for ratio in row.ratios)
        Console().print(table)
    print(f"every prediction within {GOAL:.0%}" if good else f"NOT EVERY PREDICTION IS WITHIN {GOAL:.0%}")
    return good
