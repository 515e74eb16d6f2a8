"""Which days are simulated, and what follows from each: its cost, and how busy the head is."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context

from benchmarks.network_day.day import GBIT, Cluster, Day, simulate
from benchmarks.network_day.service_times import (
    DAY_SECONDS,
    DISK_BYTES_PER_SECOND,
    H100_BF16,
    H100_FLOAT32,
    H100_TF32,
    HASH_BYTES_PER_SECOND,
    HEAD_COSTS,
    MIB,
    WEIGHTS_BYTES,
    DeviceTimes,
)
from benchmarks.network_day.workload import KIB, Workload
from workers.cluster.file_sender import MAX_BLOCKS

STEADY_SECONDS = 1_800.0
FIRST_SECONDS = 7_200.0
"""Of an epoch, whose weights are nowhere at its start."""
PLOTTED_NODES = (1, 2, 4, 8, 16, 32)
SEQUENCES_PER_BATCH = 16


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the table."""

    group: str
    label: str
    load: Workload = field(default_factory=lambda: Workload(seconds=STEADY_SECONDS))
    cluster: Cluster = field(default_factory=lambda: steady(12))


@dataclass(frozen=True, slots=True)
class Found:
    """A case and its day."""

    case: Case
    day: Day

    @property
    def num_asked(self) -> int:
        """Submissions that came."""
        return self.day.outcomes.ended.total()

    @property
    def num_evaluations(self) -> int:
        """Of those submissions that are done."""
        return self.day.outcomes.num_done * self.case.load.models_per_target

    @property
    def gpu_seconds_each(self) -> float:
        """GPU seconds that are paid for each submission that is done, idle ones included."""
        return self.case.cluster.num_nodes * self.day.seconds / max(1, self.day.outcomes.num_done)

    @property
    def busy_seconds_each(self) -> float:
        """GPU seconds in which a device worked for a submission: the cost where other work fills the rest."""
        return self.day.gpu_busy_seconds / max(1, self.day.outcomes.num_done)

    @property
    def computing_share(self) -> float:
        """Of the time in which devices are busy, that in which they compute; the rest waits for weights."""
        computing = self.day.num_sequences * self.case.cluster.device.per_sequence
        return computing / self.day.gpu_busy_seconds if self.day.gpu_busy_seconds else 0.0

    @property
    def event_loop_seconds(self) -> float:
        """Of the head's processor, for all that came."""
        costs = HEAD_COSTS
        fixed = costs.per_submission * self.num_asked + costs.per_evaluation * self.num_evaluations
        scores = costs.per_batch * self.day.num_sequences / SEQUENCES_PER_BATCH
        # For each that is refused the scheduler counts the workers, by the pool's status, to say when to come again.
        num_refused = self.num_asked - self.day.outcomes.num_done
        return fixed + scores + self.day.dispatch_seconds + self.day.status_seconds * num_refused

    def response_seconds(self, share: float) -> float:
        """The response time that so large a share of the submissions had at most."""
        times = sorted(self.day.outcomes.response_seconds)
        return times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


def steady(num_nodes: int, device: DeviceTimes = H100_FLOAT32) -> Cluster:
    """Every node has the weights of the epoch on its disk already."""
    return Cluster(num_nodes, device, weights_are_here=True, nodes_have_weights=True)


def plotted_cases() -> list[Case]:
    """The same submissions of 10 KB for more and more nodes: in steady state, and in the first hours of an epoch."""
    first = Workload(seconds=FIRST_SECONDS)
    cases = [Case("steady", f"{n} nodes", cluster=steady(n)) for n in PLOTTED_NODES]
    for link in (10, 100):
        cases += [
            Case(f"first {link}", f"{n} nodes, {link} Gbit/s", first, Cluster(n, head_link=link * GBIT))
            for n in PLOTTED_NODES
        ]
    return cases


def other_cases() -> list[Case]:
    """One thing changed at a time, from 12 nodes in steady state on."""
    load, cases = Workload(seconds=STEADY_SECONDS), []
    cases += [Case("nodes", f"{n} nodes", cluster=steady(n)) for n in (12, 24)]
    cases += [
        Case("device", f"12 nodes, {device.name}", cluster=steady(12, device))
        for device in (H100_TF32, H100_BF16)
    ]
    cases += [
        Case("models", f"{number} different models", replace(load, num_models=number))
        for number in (9, 30, 100)
    ]
    cases += [
        Case("models", f"{number} models per target", replace(load, models_per_target=number, num_models=300))
        for number in (1, 10)
    ]
    cases += [
        Case("arrival", f"{rate:g} submissions a second", replace(load, submissions_per_second=rate))
        for rate in (0.25, 0.5, 2.0)
    ]
    cases += [
        Case(
            "loss",
            f"each node lost {number} times a day",
            cluster=replace(steady(12), losses_per_node=number),
        )
        for number in (4.0, 48.0)
    ]
    cases += [
        Case("queue", f"{n} nodes, queue of {size}", cluster=replace(steady(n), queue_size=size))
        for n, size in ((4, 16), (4, 512), (8, 512))
    ]
    cases += [
        Case(
            "cache",
            "100 GiB for files on each node, the default",
            cluster=replace(steady(12), node_cache_bytes=100 << 30),
        )
    ]
    mixed = replace(load, least_data_bytes=KIB, most_data_bytes=MIB, seconds=600.0)
    large = replace(load, least_data_bytes=MIB, most_data_bytes=MIB, seconds=300.0)
    cases += [
        Case("data", "1 KiB to 1 MiB, 32 nodes, float32", mixed, steady(32)),
        Case("data", "1 KiB to 1 MiB, 16 nodes, tf32", mixed, steady(16, H100_TF32)),
        Case("data", "1 MiB, 64 nodes, tf32", large, steady(64, H100_TF32)),
    ]
    cases += [
        Case("first hours", f"12 nodes, head with {link} Gbit/s", replace(load, seconds=FIRST_SECONDS), each)
        for link in (1, 10, 25, 100)
        for each in (Cluster(12, head_link=link * GBIT, node_link=max(10, link) * GBIT),)
    ]
    return cases


def find(cases: Sequence[Case], num_processes: int = 2) -> Iterable[Found]:
    """Simulate each, in order, several at a time."""
    with ProcessPoolExecutor(num_processes, mp_context=get_context("spawn")) as processes:
        days = processes.map(simulate, (case.load for case in cases), (case.cluster for case in cases))
        for case, day in zip(cases, days, strict=True):
            yield Found(case, day)


@dataclass(frozen=True, slots=True)
class DispatchCost:
    """Seconds of the event loop for a task, by the number of nodes: a straight line through two measured numbers."""

    per_task: float
    per_task_and_node: float

    @classmethod
    def of(cls, few: Found, many: Found) -> "DispatchCost":
        """From two days of which one has more nodes."""
        each = [found.day.dispatch_seconds / found.day.num_tasks for found in (few, many)]
        nodes = [found.case.cluster.num_nodes for found in (few, many)]
        slope = (each[1] - each[0]) / (nodes[1] - nodes[0])
        return cls(each[0] - slope * nodes[0], slope)


@dataclass(frozen=True, slots=True)
class Saturation:
    """The number of nodes at which each part of the head has no more to give, if every node is used to the full."""

    label: str
    event_loop: int
    link: int
    disk: int


def saturation(
    label: str, device: DeviceTimes, data_bytes: int, cost: DispatchCost, link: float, num_models: int = 300
) -> Saturation:
    """`link` in bytes per second. Link and disk: when every node's weights of an epoch take the whole epoch."""
    num_sequences = -(-data_bytes // KIB)
    num_batches = -(-num_sequences // SEQUENCES_PER_BATCH)
    gpu_seconds = 3 * (num_sequences * device.per_sequence + num_batches * device.per_batch)

    def event_loop_share(num_nodes: int) -> float:
        num_tasks = min(num_batches, 2 * num_nodes)
        evaluation = (
            HEAD_COSTS.per_evaluation
            + HEAD_COSTS.per_batch * num_batches
            + num_tasks * (cost.per_task + cost.per_task_and_node * num_nodes)
        )
        return num_nodes / gpu_seconds * (HEAD_COSTS.per_submission + 3 * evaluation)

    event_loop = next((n for n in range(1, 5_000) if event_loop_share(n) >= 1.0), 5_000)
    bytes_for_each = num_models * WEIGHTS_BYTES
    sent = min(link, MAX_BLOCKS * HASH_BYTES_PER_SECOND)
    return Saturation(
        label,
        event_loop,
        int(sent * DAY_SECONDS / bytes_for_each),
        int(DISK_BYTES_PER_SECOND * DAY_SECONDS / bytes_for_each),
    )
