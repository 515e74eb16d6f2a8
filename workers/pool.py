"""The contract of a pool, and the default one, of processes on this machine. A service takes any pool."""

from collections.abc import Sequence
from typing import Protocol

from workers.errors import EvaluationRefused
from workers.types import DeviceStatus, EvalJob, EvalResult, OnEvalProgress, Precision, WorkerConfig


class WorkerPool(Protocol):
    """Evaluates jobs on workers of its own, never in the caller's process."""

    async def start(self) -> None:
        """Start every worker; returns when each has passed its self-test. Raises NoWorker if none can."""

    async def evaluate(self, job: EvalJob, on_progress: OnEvalProgress | None = None) -> EvalResult:
        """Evaluate one model on one data set.

        Waits for a worker when all are busy. Cancelling the awaiting task stops the work, on the
        device too. `on_progress` is called on the event loop, after each batch.
        Raises a `workers.errors.WorkerError`, never anything else.
        """

    async def evaluate_pieces(self, job: EvalJob) -> list[EvalResult | EvaluationRefused]:
        """Evaluate one model on several small data sets (`EvalJob.of_pieces`), which share forward passes.

        Where `evaluate` spreads one data set over devices, this brings many to one device together. Returns for
        each piece, in order, its own result, or why it has none. Cancelling and errors are those of `evaluate`:
        what is raised, such as WeightsInvalid or WorkerCrashed, may be the fault of any piece, or of none.
        """

    def status(self) -> list[DeviceStatus]:
        """One entry per worker, without waiting."""

    async def close(self) -> None:
        """End every worker process, whatever it is doing; returns when none is left."""


def create_pool(
    devices: Sequence[str] = ("auto",),
    *,
    small_model: bool = False,
    precision: Precision = "float32",
    num_threads: int | None = None,
    memory_budget_bytes: int | None = None,
) -> WorkerPool:
    """A pool on this machine, one worker per device; start and close it.

    `devices`: "auto" (every GPU, else one CPU worker), "cpu", "cuda" (every GPU), "cuda:N".
    `num_threads` per worker: None divides the cores evenly.
    `memory_budget_bytes`: what resident weights may take per device; None: a share of what is free.
    Raises NoWorker when a GPU is asked for and there is none, PrecisionNeedsGpu when the precision needs one.
    """
    from workers.processes.devices import check_precision, resolve_devices, share_machine
    from workers.processes.process_pool import ProcessPool

    config = WorkerConfig(
        device="",
        small_model=small_model,
        precision=precision,
        num_threads=num_threads,
        memory_budget_bytes=memory_budget_bytes,
    )
    resolved = resolve_devices(devices)
    check_precision(precision, resolved)
    return ProcessPool(share_machine(config, resolved))
