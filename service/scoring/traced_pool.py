"""A pool whose evaluations are spans: loading and batches on each device, by the times that the pool reports."""

import time

from service import tracing
from workers.errors import EvaluationRefused
from workers.pool import WorkerPool
from workers.queue_entry import QueueEntry
from workers.types import DeviceStatus, EvalJob, EvalResult, OnEvalProgress, TaskTimes


class TracedPool:
    """A `workers.pool.WorkerPool` over another."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool

    async def start(self) -> None:
        """See WorkerPool."""
        await self._pool.start()

    async def evaluate(
        self, job: EvalJob, on_progress: OnEvalProgress | None = None, entry: QueueEntry | None = None
    ) -> EvalResult:
        """See WorkerPool."""
        attributes: tracing.Attributes = {
            "soma_eval.weights.checksum": job.weights_checksum,
            "soma_eval.data.checksum": job.data_checksum,
            "soma_eval.data.bytes": job.data_size,
            "soma_eval.encrypted": job.decryption_key is not None,
        }
        with tracing.span("evaluation", attributes) as span:
            began = time.monotonic()
            result = await self._pool.evaluate(job, on_progress, entry)
            span.set(
                {
                    "soma_eval.device": result.device,
                    "soma_eval.precision": result.precision,
                    "soma_eval.batches": result.num_batches,
                }
            )
            for task in result.tasks:
                _record(task, began)
        return result

    async def evaluate_pieces(
        self, job: EvalJob, entry: QueueEntry | None = None
    ) -> list[EvalResult | EvaluationRefused]:
        """See WorkerPool."""
        attributes: tracing.Attributes = {
            "soma_eval.weights.checksum": job.weights_checksum,
            "soma_eval.data.bytes": job.data_size,
            "soma_eval.pieces": len(job.pieces),
            "soma_eval.encrypted": job.decryption_key is not None,
        }
        with tracing.span("evaluation", attributes):
            return await self._pool.evaluate_pieces(job, entry)

    def status(self) -> list[DeviceStatus]:
        """See WorkerPool."""
        return self._pool.status()

    def nodes(self) -> dict[str, bool]:
        """See WorkerPool."""
        return self._pool.nodes()

    async def close(self) -> None:
        """See WorkerPool."""
        await self._pool.close()


def _record(task: TaskTimes, began: float) -> None:
    device = {"soma_eval.device": task.device}
    if task.node:
        device["soma_eval.node"] = task.node
    if task.loaded is None:  # lost before its weights were loaded
        tracing.record("load", began + task.began, began + task.ended, device)
        return
    loaded = began + task.loaded
    cached = task.load_seconds == 0.0
    tracing.record(
        "load", loaded - task.load_seconds, loaded, {**device, "soma_eval.weights.resident": cached}
    )
    batches = {"soma_eval.batches.start": task.start, "soma_eval.batches.stop": task.stop}
    tracing.record("batches", loaded, began + task.ended, {**device, **batches})


_keeps_the_contract: type[WorkerPool] = TracedPool
