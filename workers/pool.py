"""The contract of a pool, and the default one, of processes on this machine. A service takes any pool."""

import importlib.util
from collections.abc import Sequence
from typing import Protocol

from workers.errors import EvaluationRefused, NoWorker
from workers.queue_entry import QueueEntry
from workers.types import DeviceStatus, EvalJob, EvalResult, OnEvalProgress, Precision, WorkerConfig


class WorkerPool(Protocol):
    """Evaluates jobs on workers of its own, never in the caller's process."""

    async def start(self) -> None:
        """Start every worker; returns when each has passed its self-test. Raises NoWorker if none can."""

    async def evaluate(
        self, job: EvalJob, on_progress: OnEvalProgress | None = None, entry: QueueEntry | None = None
    ) -> EvalResult:
        """Evaluate one model on one data set.

        Waits for a worker when all are busy, in the order of the entries, or in which it was asked for.
        Cancelling the awaiting task stops the work, on the device too. `on_progress` is called on the event loop,
        after each batch, and within one that takes long. Raises a `workers.errors.WorkerError`, never anything else.
        """

    async def evaluate_pieces(
        self, job: EvalJob, entry: QueueEntry | None = None
    ) -> list[EvalResult | EvaluationRefused]:
        """Evaluate one model on several small data sets (`EvalJob.of_pieces`), which share forward passes.

        Where `evaluate` spreads one data set over devices, this brings many to one device together. Returns for
        each piece, in order, its own result, or why it has none. `entry`, cancelling and errors are those of
        `evaluate`: what is raised, such as WeightsInvalid or WorkerCrashed, may be the fault of any piece, or of none.
        """

    def status(self) -> list[DeviceStatus]:
        """One entry per worker, without waiting."""

    def nodes(self) -> dict[str, bool]:
        """The machines that workers run on, by name, and whether each is there; "" is this machine.

        One that left its cluster is remembered for a while.
        """

    async def close(self) -> None:
        """End every worker process, whatever it is doing; returns when none is left."""


def create_pool(
    devices: Sequence[str] = ("auto",),
    *,
    small_model: bool = False,
    architecture: str = "",
    precision: Precision = "float32",
    num_threads: int | None = None,
    memory_budget_bytes: int | None = None,
) -> WorkerPool:
    """A pool on this machine, one worker per device; start and close it.

    `devices`: "auto" (every GPU, else one CPU worker), "cpu", "cuda" (every GPU), "cuda:N".
    `num_threads` per worker: None divides the cores evenly.
    `memory_budget_bytes`: what resident weights may take on each device, however many workers share it; None: 60 % of
    what is free at the start on a GPU, half of it on a CPU.
    `architecture`: JSON of another one than the network's own or the small one, `ArchitectureConfig.to_json`.
    Raises NoWorker when a GPU is asked for and there is none, PrecisionNeedsGpu when the precision needs one.
    """
    from workers.processes.devices import check_precision, resolve_devices, share_machine
    from workers.processes.process_pool import ProcessPool

    config = WorkerConfig(
        device="",
        small_model=small_model,
        architecture=architecture,
        precision=precision,
        num_threads=num_threads,
        memory_budget_bytes=memory_budget_bytes,
    )
    resolved = resolve_devices(devices)
    check_precision(precision, resolved)
    return ProcessPool(share_machine(config, resolved))


def create_cluster_pool(
    address: str,
    devices: Sequence[str] = ("auto",),
    *,
    small_model: bool = False,
    architecture: str = "",
    precision: Precision = "float32",
    num_threads: int | None = None,
    memory_budget_bytes: int | None = None,
    allow_open: bool = False,
    data_dir: str,
    data_max_bytes: int,
) -> WorkerPool:
    """A pool on the nodes of a Ray cluster, one worker per device of theirs; start and close it.

    `address`: HOST:PORT of the cluster's head, or "local" for a private one on this machine. `devices`: as for
    `create_pool`, for each node, but for "cuda:N". `allow_open`: whether a cluster that asks for no token will do.
    `data_dir`, `data_max_bytes`: the folder on each node for the files that it is sent, and its limit.
    Raises NoWorker where Ray is not installed, PrecisionNeedsGpu when the precision needs a GPU.
    """
    if importlib.util.find_spec("ray") is None:
        raise NoWorker("a pool on a Ray cluster needs the extra: pip install 'soma-eval[cluster]'")
    from workers.cluster.cluster_pool import ClusterPool
    from workers.cluster.messages import ClusterConfig
    from workers.processes.devices import check_precision
    from workers.processes.worker_process import ENTRY_MODULE

    check_precision(precision, devices)
    needs_gpu = precision != "float32"  # and "auto" may be a CPU
    cluster = ClusterConfig(
        address=address,
        devices="cuda" if needs_gpu else ",".join(devices),
        allow_open=allow_open,
        data_dir=data_dir,
        data_max_bytes=data_max_bytes,
        entry_module=ENTRY_MODULE,
    )
    config = WorkerConfig(
        device="",
        small_model=small_model,
        architecture=architecture,
        precision=precision,
        num_threads=num_threads,
        memory_budget_bytes=memory_budget_bytes,
    )
    return ClusterPool(cluster, config)
