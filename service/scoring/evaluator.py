"""One evaluation, computed once: from the kept results, from a caller who has it computed now, or by the pool.

evaluate ──► a caller computes the same now? wait for it; where it leaves early, the next takes over from the start
        └──► kept? answer, with no worker
        └──► an entry in the queue ──► WorkerPool ──► keep, unless it is trouble

Whoever asks holds the weights and the data by then, each shown to be what its URL delivers: what is kept decides how
long an answer takes, never which it is.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import structlog

from service import tracing
from service.metrics import Metrics
from service.scoring.kept_results import (
    REFUSALS,
    KeptResult,
    KeptResults,
    Refusal,
    ResultKey,
    ServedModel,
    same_bits,
)
from service.scoring.result_names import ResultNames
from workers.errors import WorkerError
from workers.pool import WorkerPool
from workers.queue_entry import QueueEntry
from workers.types import EvalJob, EvalProgress, EvalResult, OnEvalProgress

_FlightName = tuple[object, ...]

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Computed:
    """The result of one evaluation, and how this caller came by it."""

    result: EvalResult
    computed_at: datetime
    """UTC."""
    was_kept: bool
    """True if nothing had to be computed for it: its seconds are 0 then."""
    queue_seconds: float
    """Until a first worker began it."""
    numerics_version: str


@dataclass(eq=False, slots=True)
class _Flight:
    """One evaluation that somebody looks up or computes now, and everybody who waits for it."""

    listeners: list[OnEvalProgress] = field(default_factory=list)
    latest: EvalProgress | None = None
    outcome: Computed | WorkerError | None = None
    """None as long as it runs, and where its caller has left before the end."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def report(self, progress: EvalProgress) -> None:
        """Call everybody's callback."""
        self.latest = progress
        for listener in tuple(self.listeners):
            listener(progress)

    @asynccontextmanager
    async def listening(self, on_progress: OnEvalProgress) -> AsyncIterator[None]:
        """Have its progress reported to one more, within the block."""
        self.listeners.append(on_progress)
        try:
            if self.latest is not None:
                on_progress(self.latest)
            yield
        finally:
            self.listeners.remove(on_progress)


class Evaluator:
    """Answers jobs from the kept results and, where there is none, from a pool. One event loop."""

    def __init__(self, pool: WorkerPool, kept: KeptResults, model: ServedModel, metrics: Metrics) -> None:
        self._pool = pool
        self._kept = kept
        self._model = model
        self._names = ResultNames(pool, model)
        self._metrics = metrics
        self._flights: dict[_FlightName, _Flight] = {}

    async def evaluate(
        self,
        job: EvalJob,
        entry: AbstractContextManager[QueueEntry | None],
        on_progress: OnEvalProgress,
        *,
        anew: bool = False,
    ) -> Computed:
        """The result of a job whose checksums are those of its files.

        `entry` is entered only to compute. `anew`: compute, whatever is kept; where the bits differ, one of the two is
        the fault of a machine, which is reported, and neither is kept. A job that asks for detail is computed in the
        same way, for no detail is kept. Cancelling one caller leaves the others their result. Raises WorkerError.
        """
        if anew or job.detail:
            return await self._compute(job, entry, on_progress, compare=True)
        name = (job.weights_id, job.data_checksum, job.seed)
        while (flight := self._flights.get(name)) is not None:
            async with flight.listening(on_progress):
                await flight.ended.wait()
            if flight.outcome is not None:
                return self._shared(flight.outcome)
        flight = self._flights[name] = _Flight()
        try:
            async with flight.listening(on_progress):
                with tracing.span("kept result") as span:
                    found = await self._find(job)
                    span.set({"soma_eval.result.found": found is not None})
                flight.outcome = found or await self._compute(job, entry, flight.report, compare=False)
            return flight.outcome
        except WorkerError as error:
            flight.outcome = error
            raise
        finally:
            del self._flights[name]
            flight.ended.set()

    def _shared(self, outcome: Computed | WorkerError) -> Computed:
        """Another caller's outcome."""
        if isinstance(outcome, WorkerError):  # an exception for each: it collects a traceback
            raise type(outcome)(outcome.detail)
        if outcome.was_kept:
            self._metrics.result_cache_hits.inc()
        return outcome

    async def _find(self, job: EvalJob) -> Computed | None:
        """A kept result of any kind of device that could compute it here. Raises the refusal that is kept."""
        keys = self._names.of(job)
        found = await self._kept.find(keys)
        for key in keys:
            if (kept := found.get(key)) is None:
                continue
            self._metrics.result_cache_hits.inc()
            if not isinstance(kept.outcome, EvalResult):
                raise kept.outcome
            result = replace(kept.outcome, load_seconds=0.0, eval_seconds=0.0)
            return Computed(result, kept.computed_at, True, 0.0, key.numerics_version)
        return None

    async def _compute(
        self,
        job: EvalJob,
        entry: AbstractContextManager[QueueEntry | None],
        on_progress: OnEvalProgress,
        *,
        compare: bool,
    ) -> Computed:
        outcome: EvalResult | Refusal
        with entry as own:
            try:
                outcome = await self._pool.evaluate(job, on_progress, own)
            except REFUSALS as refusal:
                outcome = refusal
        computed = KeptResult(outcome, datetime.now(UTC))
        if (key := self._names.of_outcome(job, outcome)) is not None:
            await self._keep(key, computed, compare)
        if not isinstance(outcome, EvalResult):
            raise outcome
        queue_seconds = min((task.began for task in outcome.tasks), default=0.0)
        return Computed(outcome, computed.computed_at, False, queue_seconds, self._model.numerics_version)

    async def _keep(self, key: ResultKey, computed: KeptResult, compare: bool) -> None:
        before = (await self._kept.find([key])).get(key) if compare else None
        if before is None:
            await self._kept.keep({key: computed})
        elif not same_bits(before.outcome, computed.outcome):
            self._metrics.result_mismatches.inc()
            log.error(
                "a result differs from the kept one: this machine, or the one that computed it, is faulty",
                weights_checksum=key.weights_checksum,
                data_checksum=key.data_checksum,
                seed=key.seed,
                device=key.device,
                kept=_in_words(before.outcome),
                kept_since=before.computed_at.isoformat(),
                computed=_in_words(computed.outcome),
            )
            await self._kept.forget(key)


def _in_words(outcome: EvalResult | Refusal) -> str:
    return f"loss {outcome.loss!r}" if isinstance(outcome, EvalResult) else type(outcome).__name__
