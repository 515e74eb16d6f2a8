"""A pool without processes, for tests of the service: it answers from a table, weights checksum to result or error."""

import asyncio
from collections.abc import Mapping

import numpy as np

from workers.errors import EvaluationRefused
from workers.pool import WorkerPool
from workers.queue_entry import QueueEntry
from workers.types import DeviceStatus, EvalJob, EvalProgress, EvalResult, OnEvalProgress

EMBEDDING_DIM = 16
"""Of the small model."""
DEVICE_NAME = "a table"
VERSIONS = {"torch": "none"}

MAX_RUNNING = 2
"""Evaluations at once; the others wait, as for a worker."""

Answer = EvalResult | Exception


class InProcessPool:
    """A `workers.pool.WorkerPool` that answers every job by its weights' checksum.

    An evaluation waits until `released` is set, which it is from the start; `released.clear()` keeps those
    that come later busy until it is set again, or until they are cancelled.
    """

    def __init__(self, answers: Mapping[str, Answer] | None = None, default: Answer | None = None) -> None:
        """`default` answers for all weights that are not in the table: loss 1 where none is given."""
        self._answers = dict(answers or {})
        self._default = default or eval_result()
        self.jobs: list[EvalJob] = []
        """All that were ever begun, in order."""
        self.num_running = 0
        self.num_cancelled = 0
        self.is_ready = True
        """Whether its one worker says that it has passed its self-test."""
        self.is_closed = False
        self._workers = asyncio.Semaphore(MAX_RUNNING)
        self.released = asyncio.Event()
        self.released.set()

    async def start(self) -> None:
        """Nothing has to be started."""

    async def evaluate(
        self, job: EvalJob, on_progress: OnEvalProgress | None = None, entry: QueueEntry | None = None
    ) -> EvalResult:
        """The answer for these weights, once it is released."""
        async with self._workers:
            if entry:
                entry.begin()
            return await self._evaluate(job, on_progress or (lambda progress: None))

    async def _evaluate(self, job: EvalJob, report: OnEvalProgress) -> EvalResult:
        self.jobs.append(job)
        answer = self._answers.get(job.weights_checksum, self._default)
        num_batches = answer.num_batches if isinstance(answer, EvalResult) else 1
        report(EvalProgress("evaluating", 0, num_batches))
        self.num_running += 1
        try:
            await self.released.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        finally:
            self.num_running -= 1
        if isinstance(answer, Exception):
            raise answer
        report(EvalProgress("evaluating", num_batches, num_batches))
        return answer

    async def evaluate_pieces(
        self, job: EvalJob, entry: QueueEntry | None = None
    ) -> list[EvalResult | EvaluationRefused]:
        """The answer for these weights, for every piece; what is no refusal is raised."""
        try:
            return [await self.evaluate(job, entry=entry)] * len(job.pieces)
        except EvaluationRefused as refusal:
            return [refusal] * len(job.pieces)

    def nodes(self) -> dict[str, bool]:
        """This machine."""
        return {"": True}

    def status(self) -> list[DeviceStatus]:
        """One CPU worker."""
        return [
            DeviceStatus(
                "cpu",
                ready=self.is_ready,
                busy=self.num_running > 0,
                pid=None,
                restarts=0,
                device_name=DEVICE_NAME,
                versions=VERSIONS,
            )
        ]

    async def close(self) -> None:
        """Nothing has to be ended."""
        self.is_closed = True


def eval_result(loss: float = 1.0, embedding: float = 1.0) -> EvalResult:
    """A result of one batch; `embedding` fills every component."""
    return EvalResult(
        loss=loss,
        cross_entropy=loss,
        sig_reg=0.0,
        embedding=np.full(EMBEDDING_DIM, embedding, dtype=np.float32),
        attends_to_future=False,
        num_sequences=1,
        num_batches=1,
        precision="float32",
        device="cpu",
        load_seconds=0.0,
        eval_seconds=0.0,
        versions=VERSIONS,
        device_name=DEVICE_NAME,
    )


_keeps_the_contract: type[WorkerPool] = InProcessPool
