"""One request from start to end: admission, blobs, evaluations, the verdict. Read this file first.

door ──► Scorer.score ──► Scheduler.admit      queue-full is said now, before a byte is fetched
             │
             ├─ data ────► BlobCache ──► Downloader ──► (address guard)
             ├─ model 0 ─► BlobCache ─┐
             ├─ model 1 ─► BlobCache ─┤ each as soon as its own weights and the data are there
             │                        └► Scheduler.turn ──► WorkerPool.evaluate
             ▼
         Verdict: the winner, its distance to the target, and every model's own outcome
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.cache import BlobCache, CachedBlob
from service.competition import (
    BlobRef,
    Competition,
    ModelManifest,
    cosine_distance,
    is_near_tie,
    margin,
    pick_winner,
)
from service.download import DownloadProgress
from service.errors import (
    BlobKind,
    BlobTooLarge,
    DecryptionFailed,
    EmptyData,
    EvaluationCrashesWorker,
    Fault,
    InvalidRequest,
    NonFiniteResult,
    NoWorker,
    OutOfMemory,
    ScoringError,
    WeightsInvalid,
    WorkerCrashed,
    ZeroEmbedding,
)
from service.metrics import Metrics
from service.scheduler import Scheduler, Ticket
from workers import errors as worker_errors
from workers.pool import WorkerPool
from workers.types import EvalJob, EvalProgress, EvalResult, Precision

WeightsCached = Literal["disk", "device", "no"]


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one evaluation went, in seconds."""

    queue_seconds: float
    download_seconds: float
    load_seconds: float
    eval_seconds: float
    total_seconds: float
    weights_cached: WeightsCached
    """Where the weights were found: on the device, on disk, or nowhere yet."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """What the numbers were made from and with."""

    weights_checksum: str
    """As computed from the bytes that came, not as promised."""
    data_checksum: str
    seed: int
    architecture_version: str
    precision: Precision
    device: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one model is worth on the data."""

    loss: float
    cross_entropy: float
    sig_reg: float
    embedding: NDArray[np.float32]
    """[embedding_dim]"""
    distance: float | None
    attends_to_future: bool
    num_sequences: int
    num_batches: int
    provenance: Provenance
    timings: Timings


@dataclass(frozen=True, slots=True)
class ModelOutcome:
    """One model's evaluation, or why there is none."""

    evaluation: Evaluation | None = None
    error: ScoringError | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a competition."""

    winner: int
    outcomes: tuple[ModelOutcome, ...]
    """One per model, in the order of the request."""
    margin: float | None
    """Loss of the second best less the winner's."""
    near_tie: bool

    @property
    def winning(self) -> Evaluation:
        """The winner's evaluation."""
        evaluation = self.outcomes[self.winner].evaluation
        assert evaluation is not None
        return evaluation


@dataclass(frozen=True, slots=True)
class Progress:
    """How far one part of a request has come."""

    phase: Literal["admitted", "downloading", "queued", "loading", "evaluating", "done", "failed"]
    blob: BlobKind | None = None
    model_index: int | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    bytes_per_second: float | None = None
    batches_done: int | None = None
    num_batches: int | None = None


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for."""

    embedding_dim: int
    """Length of a target embedding: that of the architecture served."""
    max_data_bytes: int
    max_model_bytes: int
    max_models: int
    architecture_version: str = "1"


@dataclass(eq=False, slots=True)
class _Request:
    """A competition on its way: what its parts share."""

    competition: Competition
    ticket: Ticket
    on_progress: OnProgress
    started: float = field(default_factory=time.monotonic)


def ignore_progress(progress: Progress) -> None:
    """For callers that only want the answer."""


class Scorer:
    """Answers competitions; a single evaluation is a competition of one."""

    def __init__(
        self, cache: BlobCache, scheduler: Scheduler, pool: WorkerPool, limits: Limits, metrics: Metrics
    ) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._pool = pool
        self._limits = limits
        self._metrics = metrics

    async def score(self, competition: Competition, on_progress: OnProgress = ignore_progress) -> Verdict:
        """Evaluate every model on the data with the seed, and name the winner.

        A model that cannot be fetched or judged has its error in its outcome. Raises that error when no
        model is valid; any error of the data or of this service itself is raised, for a winner named
        without a model that we failed to judge would be a lie. Cancelling the task stops all its work.
        """
        self._check(competition)
        async with self._scheduler.admit(len(competition.models)) as ticket:
            request = _Request(competition, ticket, on_progress)
            on_progress(Progress("admitted"))
            outcomes = await self._evaluate_all(request)
        return _verdict(outcomes)

    async def evaluate(
        self, competition: Competition, on_progress: OnProgress = ignore_progress
    ) -> Evaluation:
        """Score a competition of one model; its error is raised."""
        return (await self.score(competition, on_progress)).winning

    async def _evaluate_all(self, request: _Request) -> list[ModelOutcome]:
        """Fetch the data and all weights at once; evaluate each model as soon as its weights are there."""
        models = request.competition.models
        async with AsyncExitStack() as pins:
            try:
                async with asyncio.TaskGroup() as group:
                    data = group.create_task(pins.enter_async_context(self._data(request)))
                    outcomes = [
                        group.create_task(self._outcome(request, index, model, data))
                        for index, model in enumerate(models)
                    ]
            except BaseExceptionGroup as failures:  # the first has cancelled the others
                raise failures.exceptions[0] from None
            return [outcome.result() for outcome in outcomes]

    async def _outcome(
        self, request: _Request, index: int, model: ModelManifest, data: asyncio.Task[CachedBlob]
    ) -> ModelOutcome:
        """One model's evaluation, or the error that is its own."""
        try:
            evaluation = await self._evaluate(request, index, model, data)
        except ScoringError as error:
            if error.fault != "model_owner":
                raise
            request.on_progress(Progress("failed", model_index=index))
            return ModelOutcome(error=error.of_model(index))
        request.on_progress(Progress("done", model_index=index))
        return ModelOutcome(evaluation)

    async def _evaluate(
        self, request: _Request, index: int, model: ModelManifest, data: asyncio.Task[CachedBlob]
    ) -> Evaluation:
        async with (
            self._scheduler.room_for_weights(request.ticket),
            self._weights(request, index, model.weights) as weights,
        ):
            data_blob = await data
            job = EvalJob(
                weights_path=str(weights.path),
                weights_checksum=weights.checksum,
                data_path=str(data_blob.path),
                data_size=data_blob.size,
                seed=request.competition.seed,
                decryption_key=model.decryption_key,
                architecture_version=self._limits.architecture_version,
            )
            waiting_since = time.monotonic()
            request.on_progress(Progress("queued", model_index=index))
            async with self._scheduler.turn(request.ticket):
                queue_seconds = time.monotonic() - waiting_since
                try:
                    result = await self._pool.evaluate(job, _report_batches(request.on_progress, index))
                except worker_errors.WorkerError as error:
                    data_fault: Fault = (
                        "client" if isinstance(request.competition.data, bytes) else "data_submitter"
                    )
                    raise translate(error, data_fault) from error
        timings = Timings(
            queue_seconds=queue_seconds,
            download_seconds=max(weights.download_seconds, data_blob.download_seconds),
            load_seconds=result.load_seconds,
            eval_seconds=result.eval_seconds,
            total_seconds=time.monotonic() - request.started,
            weights_cached=_where_cached(weights, result),
        )
        self._observe(timings)
        return _evaluation(request.competition, job, data_blob, result, timings)

    def _observe(self, timings: Timings) -> None:
        for phase in ("queue", "download", "load", "eval"):
            self._metrics.phase_seconds.labels(phase).observe(getattr(timings, f"{phase}_seconds"))

    @asynccontextmanager
    async def _data(self, request: _Request) -> AsyncIterator[CachedBlob]:
        data = request.competition.data
        if isinstance(data, bytes):
            async with self._cache.put(data) as blob:
                yield blob
            return
        async with self._cache.fetch(
            data,
            kind="data",
            max_bytes=self._limits.max_data_bytes,
            on_progress=_report_bytes(request.on_progress, "data", None),
        ) as blob:
            if blob.size == 0:
                raise EmptyData("the data is empty", fault="data_submitter", blob="data")
            yield blob

    @asynccontextmanager
    async def _weights(self, request: _Request, index: int, weights: BlobRef) -> AsyncIterator[CachedBlob]:
        async with self._cache.fetch(
            weights,
            kind="model",
            max_bytes=self._limits.max_model_bytes,
            on_progress=_report_bytes(request.on_progress, "model", index),
        ) as blob:
            yield blob

    def _check(self, competition: Competition) -> None:
        """What can be told before anything is fetched."""
        limits = self._limits
        if not 1 <= len(competition.models) <= limits.max_models:
            raise InvalidRequest(f"a competition has 1 to {limits.max_models} models")
        if isinstance(competition.data, bytes):
            if not competition.data:
                raise EmptyData("the data is empty", fault="client", blob="data")
            if len(competition.data) > limits.max_data_bytes:
                raise BlobTooLarge(f"the data has more than {limits.max_data_bytes} bytes", blob="data")
        target = competition.target_embedding
        if target is None:
            return
        if len(target) != limits.embedding_dim:
            raise InvalidRequest(
                f"the target embedding has {len(target)} numbers; it takes {limits.embedding_dim}"
            )
        if not np.isfinite(target).all():
            raise InvalidRequest("the target embedding holds a number that is not finite")
        if not np.any(target):
            raise ZeroEmbedding("the target embedding is the zero vector", fault="client", blob=None)


def translate(error: worker_errors.WorkerError, data_fault: Fault) -> ScoringError:
    """What a failure of the pool means to a caller. The most specific class first."""
    match error:
        case worker_errors.DecryptionFailed():
            return DecryptionFailed(error.detail)
        case worker_errors.WeightsInvalid():
            return WeightsInvalid(error.detail)
        case worker_errors.NonFiniteResult():
            return NonFiniteResult(error.detail)
        case worker_errors.EmptyData():
            return EmptyData(error.detail, fault=data_fault, blob="data")
        case worker_errors.EvaluationCrashesWorker():
            return EvaluationCrashesWorker(error.detail)
        case worker_errors.OutOfMemory():
            return OutOfMemory(error.detail)
        case worker_errors.NoWorker():
            return NoWorker(error.detail, retry_after_seconds=5.0)
        case worker_errors.WorkerCrashed() | worker_errors.FileUnreadable():
            return WorkerCrashed(error.detail)
    raise TypeError(f"no row for {type(error).__name__}")


def _verdict(outcomes: list[ModelOutcome]) -> Verdict:
    losses = [outcome.evaluation.loss if outcome.evaluation else None for outcome in outcomes]
    winner = pick_winner(losses)
    if winner is None:
        raise _most_telling([outcome.error for outcome in outcomes if outcome.error])
    lead = margin(losses)
    winner_loss = losses[winner]
    assert winner_loss is not None
    return Verdict(winner, tuple(outcomes), lead, is_near_tie(winner_loss, lead))


def _most_telling(errors: list[ScoringError]) -> ScoringError:
    """Of several models' errors one that a retry may cure, else the first: no verdict is final yet."""
    return next((error for error in errors if error.retryable), errors[0])


def _evaluation(
    competition: Competition, job: EvalJob, data: CachedBlob, result: EvalResult, timings: Timings
) -> Evaluation:
    target = competition.target_embedding
    return Evaluation(
        loss=result.loss,
        cross_entropy=result.cross_entropy,
        sig_reg=result.sig_reg,
        embedding=result.embedding,
        distance=None if target is None else cosine_distance(result.embedding, target),
        attends_to_future=result.attends_to_future,
        num_sequences=result.num_sequences,
        num_batches=result.num_batches,
        provenance=Provenance(
            weights_checksum=job.weights_checksum,
            data_checksum=data.checksum,
            seed=job.seed,
            architecture_version=job.architecture_version,
            precision=result.precision,
            device=result.device,
            versions=result.versions,
        ),
        timings=timings,
    )


def _where_cached(weights: CachedBlob, result: EvalResult) -> WeightsCached:
    if result.weights_cached == "device":
        return "device"
    return "disk" if weights.was_cached else "no"


def _report_bytes(
    on_progress: OnProgress, blob: BlobKind, model_index: int | None
) -> Callable[[DownloadProgress], None]:
    def report(progress: DownloadProgress) -> None:
        on_progress(
            Progress(
                "downloading",
                blob=blob,
                model_index=model_index,
                bytes_done=progress.bytes_done,
                bytes_total=progress.bytes_total,
                bytes_per_second=progress.bytes_per_second,
            )
        )

    return report


def _report_batches(on_progress: OnProgress, model_index: int) -> Callable[[EvalProgress], None]:
    def report(progress: EvalProgress) -> None:
        on_progress(
            Progress(
                progress.phase,
                model_index=model_index,
                batches_done=progress.batches_done,
                num_batches=progress.num_batches,
            )
        )

    return report
