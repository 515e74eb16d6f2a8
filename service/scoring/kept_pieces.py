"""What is kept of the pieces of a screen: looked up before anything waits for a worker, kept as soon as it is known.

A piece has two names: that of its evaluation alone, which `/score` keeps, and that of one beside other pieces. The
first is believed here too; the second never elsewhere, for its last digits are those of its company.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from service import tracing
from service.metrics import Metrics
from service.scoring.kept_results import (
    REFUSALS,
    KeptResult,
    KeptResults,
    Refusal,
    ResultKey,
    ServedModel,
    SharedPassKey,
)
from service.scoring.result_names import ResultNames
from workers.errors import EvaluationRefused
from workers.pool import WorkerPool
from workers.types import EvalJob, EvalResult

Outcome = EvalResult | Refusal


class KeptPieces:
    """The kept results of one service's pool, for small pieces of data that are computed together."""

    def __init__(self, pool: WorkerPool, kept: KeptResults, model: ServedModel, metrics: Metrics) -> None:
        self._kept = kept
        self._names = ResultNames(pool, model)
        self._metrics = metrics

    async def find(self, pieces: Sequence[EvalJob]) -> list[Outcome | None]:
        """What is kept of each piece, in order. A job stands for a piece: its checksums are those of its bytes."""
        names = [self._names_of(piece) for piece in pieces]
        with tracing.span("kept results", {"soma_eval.pieces": len(pieces)}) as span:
            kept = await self._kept.find([name for each in names for name in each])
            found = [_first(kept, each) for each in names]
            num_found = len(found) - found.count(None)
            span.set({"soma_eval.results.found": num_found})
        self._metrics.result_cache_hits.inc(num_found)
        return found

    async def keep(
        self, pieces: Sequence[EvalJob], outcomes: Sequence[EvalResult | EvaluationRefused]
    ) -> None:
        """Keep what came of pieces that were computed together, where another try would give it too."""
        now = datetime.now(UTC)
        results: dict[ResultKey, KeptResult] = {}
        for piece, outcome in zip(pieces, outcomes, strict=True):
            if isinstance(outcome, (EvalResult, *REFUSALS)) and (
                name := self._names.of_outcome(piece, outcome)
            ):
                results[SharedPassKey.of(name)] = KeptResult(outcome, now)
        await self._kept.keep(results)

    def _names_of(self, piece: EvalJob) -> list[ResultKey]:
        """Alone before shared."""
        alone = self._names.of(piece)
        return [*alone, *map(SharedPassKey.of, alone)]


def _first(kept: Mapping[ResultKey, KeptResult], names: Sequence[ResultKey]) -> Outcome | None:
    return next((kept[name].outcome for name in names if name in kept), None)
