"""A pool without processes, which really evaluates: with the worker's own runner, in a thread of the test."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from service.config import Settings
from service.scoring.served_architecture import architecture_of
from workers.architectures import CURRENT_VERSION, config_of, load_architecture
from workers.errors import EvaluationRefused, NonFiniteResult
from workers.pool import WorkerPool, create_pool
from workers.queue_entry import QueueEntry
from workers.types import (
    BatchScore,
    DeviceStatus,
    EvalJob,
    EvalProgress,
    EvalResult,
    OnEvalProgress,
    WorkerConfig,
)
from workers.worker.runner import Runner


class ComputingPool:
    """A `workers.pool.WorkerPool` of one CPU worker."""

    def __init__(self, *, small_model: bool, architecture: str = "") -> None:
        self._runner = Runner(WorkerConfig("cpu", small_model=small_model, architecture=architecture))
        self._config = config_of(load_architecture(CURRENT_VERSION), architecture, small_model=small_model)
        self._lock = asyncio.Lock()

    async def start(self) -> None:
        """Nothing has to be started."""

    async def evaluate(
        self, job: EvalJob, on_progress: OnEvalProgress | None = None, entry: QueueEntry | None = None
    ) -> EvalResult:
        """Raises a WorkerError."""
        loop, report = asyncio.get_running_loop(), on_progress or (lambda _: None)
        num_batches = self._config.num_batches(job.data_size)

        def compute() -> tuple[float, list[BatchScore]]:
            load_seconds = self._runner.load(job, lambda: None)
            scores = []
            for score in self._runner.evaluate(job, range(num_batches), lambda: None):
                scores.append(score)
                progress = EvalProgress("evaluating", len(scores), num_batches)
                loop.call_soon_threadsafe(partial(report, progress))
            return load_seconds, scores

        async with self._lock:
            if entry:
                entry.begin()
            report(EvalProgress("loading", 0, num_batches))
            started = time.monotonic()
            load_seconds, scores = await asyncio.to_thread(compute)
            await asyncio.sleep(0)  # the last progress is reported before the result
        return self._result(job, scores, load_seconds, time.monotonic() - started)

    async def evaluate_pieces(
        self, job: EvalJob, entry: QueueEntry | None = None
    ) -> list[EvalResult | EvaluationRefused]:
        """Raises a WorkerError."""

        def compute() -> list[BatchScore]:
            self._runner.load(job, lambda: None)
            return list(self._runner.evaluate(job, range(len(job.pieces)), lambda: None))

        async with self._lock:
            if entry:
                entry.begin()
            scores = await asyncio.to_thread(compute)
        results: list[EvalResult | EvaluationRefused] = []
        for score, piece in zip(scores, job.pieces, strict=True):
            of_piece = replace(job, data_size=len(piece))
            try:
                results.append(self._result(of_piece, [replace(score, index=0)], 0.0, 0.0))
            except NonFiniteResult as refusal:
                results.append(refusal)
        return results

    def _result(
        self, job: EvalJob, scores: list[BatchScore], load_seconds: float, eval_seconds: float
    ) -> EvalResult:
        architecture = load_architecture(job.architecture_version)
        try:
            mean = architecture.running_mean(scores)
        except architecture.NonFiniteResult as error:
            raise NonFiniteResult(error.detail) from error
        details = [s.token_cross_entropy for s in scores if s.token_cross_entropy is not None]
        return EvalResult(
            loss=mean.loss,
            cross_entropy=mean.cross_entropy,
            sig_reg=mean.sig_reg,
            embedding=mean.embedding,
            attends_to_future=mean.attends_to_future,
            num_sequences=self._config.num_sequences(job.data_size),
            num_batches=len(scores),
            precision="float32",
            device="cpu",
            load_seconds=load_seconds,
            eval_seconds=eval_seconds,
            versions=self._runner.versions,
            device_name=self._runner.device_name,
            token_cross_entropy=np.concatenate(details) if details else None,
        )

    def nodes(self) -> dict[str, bool]:
        """This machine."""
        return {"": True}

    def status(self) -> list[DeviceStatus]:
        """One CPU worker."""
        status = DeviceStatus("cpu", ready=True, busy=self._lock.locked(), pid=None, restarts=0)
        return [replace(status, device_name=self._runner.device_name, versions=self._runner.versions)]

    async def close(self) -> None:
        """Nothing has to be ended."""


@asynccontextmanager
async def open_computing_pool(settings: Settings) -> AsyncIterator[WorkerPool]:
    """Stands for `service.lifespan.open_pool`, and refuses what that refuses before it starts a process."""
    create_pool(settings.device, small_model=settings.small_model, precision=settings.precision)
    architecture = "" if settings.architecture is None else architecture_of(settings).to_json()
    yield ComputingPool(small_model=settings.small_model, architecture=architecture)
