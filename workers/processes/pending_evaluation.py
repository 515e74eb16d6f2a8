"""One evaluation on its way through the pool: which batches are done, which are running, and which are free."""

import asyncio
import logging
import math
import statistics
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from workers.architectures import ArchitectureConfig, load_architecture, refusals_translated
from workers.errors import EvaluationRefused, OutOfMemory, WorkerError, WorkerTrouble
from workers.processes.task_times import TaskClock
from workers.queue_entry import OrderOfArrival, QueueEntry
from workers.types import (
    MAX_POINTS_ALONG,
    BatchScore,
    DeviceKind,
    EvalJob,
    EvalProgress,
    EvalResult,
    OnEvalProgress,
    Precision,
)

logger = logging.getLogger(__name__)

MAX_DEATHS = 2
"""Workers that may be lost during one evaluation."""
MAX_LOST_MACHINES = 4
"""Machines of a cluster that may be lost during one evaluation, which may be what takes their memory."""
_ONE_LOSS_SECONDS = 10.0
"""All workers of one machine that are lost within this time are lost with it: one loss."""


class PendingEvaluation:
    """The batches of one job, handed out in ranges and gathered as they come back, in any order."""

    def __init__(
        self,
        job: EvalJob,
        config: ArchitectureConfig,
        on_progress: OnEvalProgress | None = None,
        entry: QueueEntry | None = None,
    ) -> None:
        """Raises UnknownArchitecture."""
        self.job = job
        self.weights_id = job.weights_id
        self.was_begun = False
        """Whether a worker was given some of it, now or before."""
        self._asked_at = time.monotonic()
        self._queue_entry = entry or OrderOfArrival()
        self.num_batches = len(job.pieces) or config.num_batches(job.data_size)
        """Or pieces, which are handed out and gathered as batches are."""
        self.kind: DeviceKind | None = None
        """What all its batches are evaluated on; None until the first is handed out."""
        self.clock = TaskClock()
        """Notes when each worker's share was begun and done."""
        self._architecture = load_architecture(job.architecture_version)
        self._config = config
        self._on_progress = on_progress
        self._outcome: asyncio.Future[list[BatchScore]] = asyncio.get_running_loop().create_future()
        self._free = [range(self.num_batches)]
        self._running: dict[int, range] = {}
        """Ranges that a worker has in hand, by task id."""
        self._scores: dict[int, BatchScore] = {}
        self._in_part: dict[int, tuple[int, float]] = {}
        """By task id the batch that it is at, and how far that is."""
        self._num_deaths = 0
        self._lost_machines: list[tuple[str, float]] = []
        """Each with the time at which it was lost."""
        self.undeliverable: dict[int, WorkerTrouble] = {}
        """Numbers of the workers that could not take it, for want of disk or memory, and why."""
        self._needs_more_memory = False
        self._devices: set[str] = set()
        self._versions: dict[str, str] = {}
        self._load_seconds = 0.0
        self._first_loaded_at = 0.0
        self._last_scored_at = 0.0
        self._report("queued")

    # -- how far it has come

    @property
    def num_free(self) -> int:
        """Batches that a worker may take; none once there is an outcome, or too many workers were lost."""
        return 0 if self.is_done or self.is_exhausted else sum(len(batches) for batches in self._free)

    @property
    def num_left(self) -> int:
        """Batches that are not done."""
        return self.num_batches - len(self._scores)

    @property
    def rank(self) -> float:
        """Its place among those that wait: see `workers.queue_entry`."""
        return self._queue_entry.rank

    @property
    def waited_seconds(self) -> float:
        """Since it was asked for."""
        return time.monotonic() - self._asked_at

    @property
    def seconds_left(self) -> float:
        """Until all is done, if it goes on as before; 0 as long as no batch is done, which would tell."""
        return self._eval_seconds() * self.num_left / len(self._scores) if self._scores else 0.0

    @property
    def is_running(self) -> bool:
        """Whether any worker has some of it in hand."""
        return bool(self._running)

    @property
    def is_exhausted(self) -> bool:
        """Whether as many workers were lost as may be: no further one is given to it."""
        return self._num_deaths >= MAX_DEATHS or len(self._lost_machines) >= MAX_LOST_MACHINES

    @property
    def is_done(self) -> bool:
        """Whether there is a result or an error."""
        return self._outcome.done()

    def has_task(self, task_id: int) -> bool:
        """Whether this task is a part of it, and still running."""
        return task_id in self._running

    def gains_by(self, begin_seconds: float) -> bool:
        """Whether a further worker, which needs so long to begin, makes it faster: the others need longer."""
        if self.num_free == 0 or begin_seconds == 0.0 or not self._scores:
            return self.num_free > 0
        return self.seconds_left > begin_seconds

    # -- what happens to it

    def take(self, task_id: int, kind: DeviceKind, num_workers: int) -> range:
        """Hand out the next range to a worker of that kind, of which there are so many.

        Half of an even share of what is left, so that all end together; pieces stay together.
        """
        self.kind = kind
        if not self.was_begun:
            self.was_begun = True
            self._queue_entry.begin()
        is_shared = num_workers > 1 and not self.job.pieces
        size = max(1, self.num_free // (2 * num_workers)) if is_shared else len(self._free[0])
        first = self._free.pop(0)
        taken, rest = first[:size], first[size:]
        if rest:
            self._free.insert(0, rest)
        self._running[task_id] = taken
        self._report("evaluating" if self._first_loaded_at else "loading")
        return taken

    def loaded(self, device: str, seconds: float, versions: dict[str, str]) -> None:
        """A worker has the weights on its device; it took `seconds`, 0.0 when they were there."""
        self._first_loaded_at = self._first_loaded_at or time.monotonic()
        self._devices.add(device)
        self._versions = versions
        self._load_seconds = max(self._load_seconds, seconds)
        self._report("evaluating")

    def batch_advanced(self, task_id: int, index: int, fraction: float) -> None:
        """That fraction of a batch is done, 0 to 1."""
        if index in self._running[task_id] and index not in self._scores:
            self._in_part[task_id] = index, fraction
            self._report("evaluating")

    def batch_done(self, score: BatchScore) -> None:
        """A batch was evaluated."""
        self._scores[score.index] = score
        self._last_scored_at = time.monotonic()
        self._report("evaluating")
        if len(self._scores) == self.num_batches and not self.is_done:
            self._outcome.set_result([self._scores[index] for index in range(self.num_batches)])

    def task_finished(self, task_id: int) -> None:
        """Every batch of a range is done."""
        del self._running[task_id]
        self._in_part.pop(task_id, None)

    def give_back(self, task_id: int) -> None:
        """The task ended early: what is not done of it is free again."""
        self._in_part.pop(task_id, None)
        undone = [index for index in self._running.pop(task_id) if index not in self._scores]
        if undone:
            self._free.append(range(undone[0], undone[-1] + 1))
            self._free.sort(key=lambda batches: batches.start)
        if not self._running and not self._scores:  # nothing is done: any kind of device will do
            self.start_over()

    def worker_died(self, task_id: int) -> None:
        """A worker was lost during this evaluation."""
        self.give_back(task_id)
        self._num_deaths += 1

    def machine_lost(self, task_id: int, machine: str) -> None:
        """A worker was lost with its machine: the others go on."""
        self.give_back(task_id)
        now = time.monotonic()
        if not any(lost == machine and now - at < _ONE_LOSS_SECONDS for lost, at in self._lost_machines):
            self._lost_machines.append((machine, now))

    def could_not_be_delivered(self, task_id: int, worker: int, error: WorkerTrouble) -> None:
        """Its files could not be brought to the worker's machine: another one may do."""
        self.give_back(task_id)
        self.undeliverable[worker] = error

    def needs_more_memory(self, task_id: int, smaller: Iterable[int], error: OutOfMemory) -> None:
        """A device's memory did not suffice: it is tried once on those that have more, and not on `smaller`."""
        self._needs_more_memory = True
        self.undeliverable |= dict.fromkeys(smaller, error)
        self.give_back(task_id)

    def may_try_more_memory(self, worker: int) -> bool:
        """Whether it may be tried on larger devices, now that this worker's memory did not suffice."""
        return not self._needs_more_memory or worker in self.undeliverable

    def start_over(self) -> None:
        """Discard what was done on devices of one kind, for none of that kind are left; no task is running."""
        self.kind = None
        self._devices.clear()
        self._scores.clear()
        self._free = [range(self.num_batches)]

    def fail(self, error: WorkerError) -> None:
        """There will be no result."""
        if not self.is_done:
            self._outcome.set_exception(error)

    # -- its result

    async def result(self, precision: Precision) -> EvalResult:
        """The scores of all batches folded in their order. Raises what it failed with, and NonFiniteResult."""
        scores = await self._outcome
        return self._result_of(scores, self.job.data_size, precision)

    async def piece_results(self, precision: Precision) -> list[EvalResult | EvaluationRefused]:
        """Of each piece the result, or why it has none. Raises what the evaluation failed with."""
        results: list[EvalResult | EvaluationRefused] = []
        for score, piece in zip(await self._outcome, self.job.pieces, strict=True):
            try:
                results.append(self._result_of([replace(score, index=0)], len(piece), precision))
            except EvaluationRefused as refusal:
                results.append(refusal)
        return results

    def _result_of(self, scores: list[BatchScore], data_size: int, precision: Precision) -> EvalResult:
        with refusals_translated(self._architecture):
            mean = self._architecture.running_mean(scores)
        return EvalResult(
            loss=mean.loss,
            cross_entropy=mean.cross_entropy,
            sig_reg=mean.sig_reg,
            embedding=mean.embedding,
            attends_to_future=mean.attends_to_future,
            num_sequences=self._config.num_sequences(data_size),
            num_batches=len(scores),
            precision=precision,
            device=",".join(sorted(self._devices)),
            load_seconds=self._load_seconds,
            eval_seconds=self._eval_seconds(),
            versions=self._versions,
            tasks=self.clock.times,
            device_name=self.kind.name if self.kind else "",
            was_cut_smaller=any(score.was_cut_smaller for score in scores),
            token_cross_entropy=_token_cross_entropy(scores) if self.job.detail else None,
            cross_entropy_along=_cross_entropy_along(scores),
        )

    def _eval_seconds(self) -> float:
        """From the first device that had the weights to the last batch."""
        return self._last_scored_at - self._first_loaded_at

    def _report(self, phase: Literal["queued", "loading", "evaluating"]) -> None:
        if self._on_progress is None:
            return
        in_part = sum(part for index, part in self._in_part.values() if index not in self._scores)
        try:
            self._on_progress(EvalProgress(phase, len(self._scores), self.num_batches, in_part))
        except Exception:
            logger.exception("the caller's on_progress raised")


def _cross_entropy_along(scores: list[BatchScore]) -> tuple[float, ...]:
    size = math.ceil(len(scores) / MAX_POINTS_ALONG)
    groups = (scores[start : start + size] for start in range(0, len(scores), size))
    return tuple(statistics.fmean(score.cross_entropy for score in group) for group in groups)


def _token_cross_entropy(scores: list[BatchScore]) -> NDArray[np.float32]:
    return np.concatenate(
        [score.token_cross_entropy for score in scores if score.token_cross_entropy is not None]
    )
