"""One model of a screen, on one group of pieces after the other, until its owner's fault ends it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from service.cache.blob_cache import CachedBlob
from service.errors import EvaluationCrashesWorker, ScoringError
from service.scoring.competition import ModelManifest
from service.scoring.evaluator import Evaluator
from service.scoring.input_files import InputFiles
from service.scoring.kept_pieces import KeptPieces, Outcome
from service.scoring.piece_groups import packed
from service.scoring.scheduler import Scheduler, Ticket
from service.scoring.screen import LocalWeights, ModelResult, Screen
from service.scoring.worker_errors import to_scoring_error
from workers import errors as worker_errors
from workers.architectures import ArchitectureConfig
from workers.pool import WorkerPool
from workers.types import EvalJob, EvalResult

MAX_CRASHES = 2
"""Pieces of which one model may end workers before it is given up for the rest of the screen."""


@dataclass(frozen=True, slots=True)
class PieceInput:
    """The data of one piece that is here: in memory, or in a file where it is more than one batch."""

    data: bytes | CachedBlob
    checksum: str
    """Blake2b-256 of the data, Base58."""

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self.data) if isinstance(self.data, bytes) else self.data.size


class ScreenedModel:
    """One model of an admitted screen."""

    def __init__(
        self,
        index: int,
        screen: Screen,
        *,
        architecture: ArchitectureConfig,
        architecture_version: str,
        files: InputFiles,
        scheduler: Scheduler,
        ticket: Ticket,
        pool: WorkerPool,
        evaluator: Evaluator,
        kept: KeptPieces,
    ) -> None:
        self._index = index
        self._seed = screen.seed
        self._compute_anew = screen.compute_anew
        self._architecture_version = architecture_version
        self._architecture = architecture
        self._files = files
        self._scheduler = scheduler
        self._ticket = ticket
        self._pool = pool
        self._evaluator = evaluator
        self._weights = screen.models[index].weights
        """With what is known of them by now; the model's error once it is given up."""
        self._kept = kept if isinstance(self._weights, ModelManifest) else None
        """Of weights that no URL has delivered nothing is kept: they go by no checksum."""
        self._num_crashes = 0

    async def fetch(self) -> None:
        """Bring the weights to the cache, or learn why they cannot be had. Raises trouble of this service."""
        try:
            async with self._held_weights(is_counted=True):
                pass
        except ScoringError as error:
            self._give_up(error)

    async def evaluate(self, inputs: Sequence[PieceInput]) -> list[ModelResult]:
        """The results on these pieces, in order. Raises trouble of this service."""
        small = [each for each in inputs if isinstance(each.data, bytes)]
        try:
            async with self._held_weights() as weights:
                results = iter(await self._evaluate_small(weights, small))
                return [
                    next(results)
                    if isinstance(each.data, bytes)
                    else await self._evaluate_file(self._job(weights, each))
                    for each in inputs
                ]
        except ScoringError as error:
            self._give_up(error)
            return [ModelResult(error=error.with_model_index(self._index)) for _ in inputs]

    @asynccontextmanager
    async def _held_weights(self, *, is_counted: bool = False) -> AsyncIterator[LocalWeights]:
        """The weights in a file, for the length of the block. Raises the model's error once it is given up.

        `is_counted`: whether the metrics of the cache count it, as they do once for a screen.
        """
        weights = self._weights
        if isinstance(weights, ScoringError):
            raise weights
        if isinstance(weights, LocalWeights):
            yield weights
            return
        async with self._files.weights(self._index, weights.weights, is_counted=is_counted) as blob:
            known = replace(weights.weights, checksum=blob.checksum, size=blob.size)
            if isinstance(self._weights, ModelManifest):
                self._weights = replace(weights, weights=known)
            yield LocalWeights(str(blob.path), blob.checksum, blob.size, weights.decryption_key)

    def _job(self, weights: LocalWeights, piece: PieceInput) -> EvalJob:
        """The evaluation of one piece alone."""
        return EvalJob(
            weights_path=weights.path,
            weights_checksum=weights.identity,
            weights_size=weights.size,
            data_path="" if isinstance(piece.data, bytes) else str(piece.data.path),
            data_size=piece.size,
            data_checksum=piece.checksum,
            seed=self._seed,
            decryption_key=weights.decryption_key,
            architecture_version=self._architecture_version,
        )

    async def _evaluate_small(self, weights: LocalWeights, pieces: Sequence[PieceInput]) -> list[ModelResult]:
        """What is kept, and the rest computed."""
        found: list[Outcome | None] = [None] * len(pieces)
        if self._kept is not None and not self._compute_anew:
            found = await self._kept.find([self._job(weights, piece) for piece in pieces])
        kept = [None if each is None else self._result(each, was_kept=True) for each in found]
        missing = [piece for piece, each in zip(pieces, kept, strict=True) if each is None]
        computed = iter(await self._evaluate_pieces(weights, missing))
        return [next(computed) if each is None else each for each in kept]

    async def _evaluate_pieces(
        self, weights: LocalWeights, pieces: Sequence[PieceInput]
    ) -> list[ModelResult]:
        """Together; where that ends workers, each by itself, so that only the one that does so has no result."""
        results: list[ModelResult] = []
        # The sizes of pieces that were downloaded were not known when their group was made.
        most = self._architecture.num_sequences(self._architecture.batch_bytes)
        for some in packed(pieces, lambda piece: self._architecture.num_sequences(piece.size), most):
            try:
                results += await self._evaluate_together(weights, some)
                continue
            except worker_errors.EvaluationRefused as refusal:
                raise to_scoring_error(refusal, "client") from refusal
            except worker_errors.WorkerError as error:
                if len(some) == 1:
                    results.append(self._crashed(error))
                    continue
                if not isinstance(error, _MAY_BE_ONE_PIECE):
                    raise to_scoring_error(error, "client") from error
            for piece in some:
                results += await self._evaluate_pieces(weights, [piece])
        return results

    async def _evaluate_together(
        self, weights: LocalWeights, pieces: Sequence[PieceInput]
    ) -> list[ModelResult]:
        if isinstance(error := self._weights, ScoringError):  # given up since this group was begun
            return [ModelResult(error=error) for _ in pieces]
        job = EvalJob.of_pieces(
            tuple(piece.data for piece in pieces if isinstance(piece.data, bytes)),
            weights_path=weights.path,
            weights_checksum=weights.identity,
            weights_size=weights.size,
            seed=self._seed,
            decryption_key=weights.decryption_key,
            architecture_version=self._architecture_version,
        )
        outcomes: list[EvalResult | worker_errors.EvaluationRefused]
        with self._scheduler.queue_entry(self._ticket) as entry:
            try:
                outcomes = await self._pool.evaluate_pieces(job, entry)
            except _OF_THE_WEIGHTS as refusal:
                outcomes = [refusal] * len(pieces)
        if self._kept is not None:
            await self._kept.keep([self._job(weights, piece) for piece in pieces], outcomes)
        return [self._result(outcome) for outcome in outcomes]

    async def _evaluate_file(self, job: EvalJob) -> ModelResult:
        """A piece of several batches, which fills passes by itself: as `/score` evaluates it, kept or not."""
        entry = self._scheduler.queue_entry(self._ticket)
        try:
            computed = await self._evaluator.evaluate(
                job, entry, lambda progress: None, anew=self._compute_anew
            )
        except worker_errors.NonFiniteResult as refusal:
            return self._result(refusal)
        except worker_errors.EvaluationRefused as refusal:
            raise to_scoring_error(refusal, "client") from refusal
        except worker_errors.WorkerError as error:
            return self._crashed(error)
        return ModelResult(computed.result, was_kept=computed.was_kept)

    def _result(
        self, outcome: EvalResult | worker_errors.EvaluationRefused, *, was_kept: bool = False
    ) -> ModelResult:
        """What came of one piece. Raises what it says of the weights."""
        if isinstance(outcome, EvalResult):
            return ModelResult(outcome, was_kept=was_kept)
        error = to_scoring_error(outcome, "client")
        if isinstance(outcome, _OF_THE_WEIGHTS):
            raise error from outcome
        return ModelResult(error=error.with_model_index(self._index))

    def _crashed(self, error: worker_errors.WorkerError) -> ModelResult:
        """One piece alone has ended workers: its error, if it is no trouble of this machine."""
        failure = to_scoring_error(error, "client")
        if not isinstance(failure, EvaluationCrashesWorker):
            raise failure from error
        self._num_crashes += 1
        failure = failure.with_model_index(self._index)
        if self._num_crashes >= MAX_CRASHES:
            self._give_up(failure)
        return ModelResult(error=failure)

    def _give_up(self, error: ScoringError) -> None:
        """From now on this is the model's answer. Raises the error where it is not its owner's."""
        if error.fault != "model_owner":
            raise error
        self._weights = error.with_model_index(self._index)


_OF_THE_WEIGHTS = (worker_errors.DecryptionFailed, worker_errors.WeightsInvalid)
"""Refusals that are the same for every piece."""

_MAY_BE_ONE_PIECE = (
    worker_errors.EvaluationCrashesWorker,
    worker_errors.WorkerCrashed,
    worker_errors.OutOfMemory,
)
"""What may be the fault of one of several pieces that share a job."""
