"""One evaluation on its way through the pool: which batches are done, which are out, which nobody has yet."""

import asyncio
import logging
import time
from typing import Literal

from workers.errors import NonFiniteResult, WorkerError
from workers.types import BatchScore, DeviceKind, EvalJob, EvalProgress, OnEvalProgress

logger = logging.getLogger(__name__)

MAX_DEATHS = 2
"""Workers that may be lost during one evaluation."""


class PendingEvaluation:
    """The batches of one job, handed out in ranges and gathered as they come back, in any order."""

    def __init__(self, job: EvalJob, num_batches: int, on_progress: OnEvalProgress | None) -> None:
        self.job = job
        self.num_batches = num_batches
        self.outcome: asyncio.Future[list[BatchScore]] = asyncio.get_running_loop().create_future()
        self.running: dict[int, range] = {}
        """Ranges that a worker has in hand, by task id."""
        self.kind: DeviceKind | None = None
        """What all its batches are evaluated on; None until the first is handed out."""
        self.prefetch_asked: object = None
        """What a busy worker was doing and holding when it was last asked to load the weights meanwhile."""
        self._free = [range(num_batches)]
        self._scores: dict[int, BatchScore] = {}
        self._on_progress = on_progress
        self._devices: set[str] = set()
        self._deaths = 0
        self.load_seconds = 0.0
        """The longest that a worker took to load the weights; 0.0 when none had to."""
        self._first_loaded_at = 0.0
        self._last_scored_at = 0.0
        self.versions: dict[str, str] = {}
        self._report("queued")

    @property
    def num_free(self) -> int:
        """Batches that anybody may take; none once there is an outcome, or as many workers were lost as may be."""
        return 0 if self.outcome.done() or self.is_exhausted else sum(len(batches) for batches in self._free)

    @property
    def num_left(self) -> int:
        """Batches that are not done."""
        return self.num_batches - len(self._scores)

    @property
    def is_exhausted(self) -> bool:
        """Whether as many workers were lost as may be: no further one is given to it."""
        return self._deaths >= MAX_DEATHS

    def gains_by(self, holds_weights: bool) -> bool:
        """Whether a further worker makes it faster: the others need longer than it would take to load."""
        if self.num_free == 0 or holds_weights or not self._scores:
            return self.num_free > 0
        seconds_left = self.eval_seconds() * self.num_left / len(self._scores)
        return seconds_left > self.load_seconds

    def take(self, task_id: int, kind: DeviceKind, num_workers: int) -> range:
        """Hand out the next range to a worker of that kind, of which there are so many.

        Half of an even share of what is left, so that all end together.
        """
        self.kind = kind
        size = max(1, self.num_free // (2 * num_workers)) if num_workers > 1 else len(self._free[0])
        first = self._free.pop(0)
        taken, rest = first[:size], first[size:]
        if rest:
            self._free.insert(0, rest)
        self.running[task_id] = taken
        self._report("evaluating" if self._first_loaded_at else "loading")
        return taken

    def give_back(self, task_id: int) -> None:
        """The worker is gone: what it has not done is anybody's again."""
        undone = [index for index in self.running.pop(task_id) if index not in self._scores]
        if undone:
            self._free.append(range(undone[0], undone[-1] + 1))
            self._free.sort(key=lambda batches: batches.start)
        if not self.running and not self._scores:  # nothing is done: any kind of device will do
            self.start_over()

    def start_over(self) -> None:
        """Forget what was done on devices of one kind, for no more of that kind are to be had; nothing runs."""
        self.kind = None
        self._devices.clear()
        self._scores.clear()
        self._free = [range(self.num_batches)]

    def loaded(self, device: str, seconds: float, versions: dict[str, str]) -> None:
        """A worker has the weights on its device; it took `seconds`, 0.0 when they were there."""
        self._first_loaded_at = self._first_loaded_at or time.monotonic()
        self._devices.add(device)
        self.versions = versions
        self.load_seconds = max(self.load_seconds, seconds)
        self._report("evaluating")

    def batch_done(self, score: BatchScore) -> None:
        """A batch came back."""
        self._scores[score.index] = score
        self._last_scored_at = time.monotonic()
        self._report("evaluating")
        if not score.is_finite:  # one such batch makes the mean so: the rest is not worth computing
            self.fail(NonFiniteResult("the loss or the embedding of a batch is NaN or infinite"))
        elif len(self._scores) == self.num_batches and not self.outcome.done():
            self.outcome.set_result([self._scores[index] for index in range(self.num_batches)])

    def finished(self, task_id: int) -> None:
        """A range came to its end."""
        self.running.pop(task_id)

    def worker_died(self, task_id: int) -> None:
        """A worker was lost during this evaluation."""
        self.give_back(task_id)
        self._deaths += 1

    def fail(self, error: WorkerError) -> None:
        """There will be no result."""
        if not self.outcome.done():
            self.outcome.set_exception(error)

    @property
    def devices(self) -> str:
        """The devices that took part."""
        return ",".join(sorted(self._devices))

    def eval_seconds(self) -> float:
        """From the first device that had the weights to the last batch."""
        return self._last_scored_at - self._first_loaded_at

    def _report(self, phase: Literal["queued", "loading", "evaluating"]) -> None:
        if self._on_progress is None:
            return
        try:
            self._on_progress(EvalProgress(phase, len(self._scores), self.num_batches))
        except Exception:
            logger.exception("the caller's on_progress raised")
