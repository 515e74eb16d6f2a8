"""The pool contract on one screen. `process_pool.py` keeps it on this machine; a Ray cluster could too."""

from typing import Protocol

from workers.types import DeviceStatus, EvalJob, EvalResult, OnEvalProgress


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

    def status(self) -> list[DeviceStatus]:
        """One entry per worker, without waiting."""

    async def close(self) -> None:
        """End every worker process, whatever it is doing; returns when none is left."""
