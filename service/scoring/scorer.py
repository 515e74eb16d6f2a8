"""One request from start to end: admission, files, evaluations, the result. Read this file first.

API ──► Scorer.score ──► Scheduler.admit         queue-full is answered here, before a byte is fetched
            │
            ├─ data ────► InputFiles ──► BlobCache ──► Downloader ──► address guard
            ├─ model 0 ─► InputFiles ─┐
            ├─ model 1 ─► InputFiles ─┤ each as soon as its own weights and the data are here
            │                         └► Evaluator ──► kept? else Scheduler.queue_entry ──► WorkerPool
            ▼
        CompetitionResult: the winner, its distance to the target, and every model's own outcome
"""

import asyncio
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from service.cache.blob_cache import BlobCache, CachedBlob
from service.errors import (
    Fault,
    InvalidRequest,
    ScoringError,
    ZeroEmbedding,
)
from service.last_hour import PHASES
from service.metrics import Metrics
from service.scoring.competition import (
    Competition,
    ModelManifest,
    cosine_distance,
    is_near_tie,
    margin,
    pick_winner,
)
from service.scoring.evaluator import Computed, Evaluator
from service.scoring.input_files import InputFiles
from service.scoring.limits import Limits
from service.scoring.progress import batch_reporter, logging_errors
from service.scoring.results import (
    CompetitionResult,
    Evaluation,
    ModelOutcome,
    OnProgress,
    Progress,
    Provenance,
    Timings,
    WeightsCached,
    ignore_progress,
)
from service.scoring.scheduler import Scheduler, Ticket
from service.scoring.task_errors import first_of_ours, own_trouble
from service.scoring.worker_errors import to_scoring_error
from workers.errors import WorkerError
from workers.types import EvalJob


@dataclass(eq=False, slots=True)
class _Request:
    """What the evaluations of one admitted competition share."""

    competition: Competition
    ticket: Ticket
    files: InputFiles
    on_progress: OnProgress
    started: float = field(default_factory=time.monotonic)

    @property
    def data_fault(self) -> Fault:
        """Who is at fault when the data is."""
        return "client" if isinstance(self.competition.data, bytes) else "data_submitter"


class Scorer:
    """Answers competitions; a single evaluation is a competition of one."""

    def __init__(
        self, cache: BlobCache, scheduler: Scheduler, evaluator: Evaluator, limits: Limits, metrics: Metrics
    ) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._evaluator = evaluator
        self._limits = limits
        self._metrics = metrics

    async def score(
        self,
        competition: Competition,
        on_progress: OnProgress = ignore_progress,
        *,
        timeout_seconds: float | None = None,
    ) -> CompetitionResult:
        """Evaluate every model on the data with the seed, and name the winner.

        A model that cannot be fetched or evaluated through its owner's fault has its error in its outcome. That
        error is raised when no model is valid, or when the winner's distance is undefined.
        An error of the data or of this service is raised: a winner named without a model that this service failed
        to evaluate would be misleading. Time is treated the same way: a file that does not come in time is its
        publisher's DownloadTimeout, but an evaluation that does not end in time would end on a faster machine, so
        the whole request is DeadlineExceeded.
        Cancelling the awaiting task stops all work. `timeout_seconds` is less for a request that was begun before.
        """
        self._check(competition)
        with own_trouble():
            async with self._scheduler.admit(
                len(competition.models), timeout_seconds=timeout_seconds
            ) as ticket:
                request = self._admitted(competition, ticket, logging_errors(on_progress))
                request.on_progress(Progress("admitted"))
                outcomes = await self._evaluate_all(request)
        return _result(outcomes)

    async def evaluate(
        self,
        competition: Competition,
        on_progress: OnProgress = ignore_progress,
        *,
        timeout_seconds: float | None = None,
    ) -> Evaluation:
        """Score a competition of one model; its error is raised."""
        return (await self.score(competition, on_progress, timeout_seconds=timeout_seconds)).winning

    def _admitted(self, competition: Competition, ticket: Ticket, on_progress: OnProgress) -> _Request:
        files = InputFiles(self._cache, self._scheduler, ticket, on_progress, self._limits)
        return _Request(competition, ticket, files, on_progress)

    def _check(self, competition: Competition) -> None:
        """Raise what is wrong with the request itself, before anything is fetched."""
        limits = self._limits
        limits.check_num_models(len(competition.models), "competition")
        if isinstance(competition.data, bytes):
            limits.check_inline_data(len(competition.data))
        target = competition.target_embedding
        if target is None:
            return
        if len(target) != limits.embedding_dim:
            raise InvalidRequest(
                f"the target embedding must have {limits.embedding_dim} numbers, not {len(target)}"
            )
        if not np.isfinite(target).all():
            raise InvalidRequest("the target embedding holds a number that is not finite")
        if not np.any(target):
            raise ZeroEmbedding("the target embedding is the zero vector", fault="client", blob=None)

    async def _evaluate_all(self, request: _Request) -> list[ModelOutcome]:
        """Fetch the data and all weights at once; evaluate each model as soon as its weights are there."""
        models = request.competition.models
        async with AsyncExitStack() as pins:
            try:
                async with asyncio.TaskGroup() as group:
                    data = group.create_task(
                        pins.enter_async_context(request.files.data(request.competition.data))
                    )
                    outcomes = [
                        group.create_task(self._outcome(request, index, model, data))
                        for index, model in enumerate(models)
                    ]
            except BaseExceptionGroup as failures:  # the first has cancelled the others
                raise first_of_ours(failures.exceptions) from None
            return [outcome.result() for outcome in outcomes]

    async def _outcome(
        self,
        request: _Request,
        index: int,
        model: ModelManifest | ScoringError,
        data: asyncio.Task[CachedBlob],
    ) -> ModelOutcome:
        """One model's evaluation, or the error that is its own."""
        try:
            if isinstance(model, ScoringError):
                raise model
            evaluation = await self._evaluate(request, index, model, data)
        except ScoringError as error:
            if error.fault != "model_owner":
                raise
            own_error = error.with_model_index(index)
            request.on_progress(Progress("failed", model_index=index, error=own_error))
            return ModelOutcome(error=own_error)
        finally:
            request.ticket.num_finished += 1
        request.on_progress(Progress("done", model_index=index))
        return _with_distance(evaluation, request.competition.target_embedding, index)

    async def _evaluate(
        self, request: _Request, index: int, model: ModelManifest, data: asyncio.Task[CachedBlob]
    ) -> Evaluation:
        async with request.files.weights_and_data(index, model.weights, data) as (weights, data_blob):
            job = EvalJob(
                weights_path=str(weights.path),
                weights_checksum=weights.checksum,
                weights_size=weights.size,
                data_path=str(data_blob.path),
                data_size=data_blob.size,
                data_checksum=data_blob.checksum,
                seed=request.competition.seed,
                decryption_key=model.decryption_key,
                architecture_version=self._limits.architecture_version,
            )
            request.on_progress(Progress("queued", model_index=index, is_here=True))
            try:
                computed = await self._evaluator.evaluate(
                    job,
                    self._scheduler.queue_entry(request.ticket),
                    batch_reporter(request.on_progress, index),
                    anew=request.competition.compute_anew,
                )
            except WorkerError as error:
                raise to_scoring_error(error, request.data_fault) from error
        timings = Timings(
            queue_seconds=computed.queue_seconds,
            download_seconds=max(weights.download_seconds, data_blob.download_seconds),
            load_seconds=computed.result.load_seconds,
            eval_seconds=computed.result.eval_seconds,
            total_seconds=time.monotonic() - request.started,
            weights_cached=_where_cached(weights, computed),
            result_cached=computed.was_kept,
        )
        self._observe(timings)
        return _evaluation(job, self._limits.architecture.name, computed, timings)

    def _observe(self, timings: Timings) -> None:
        for phase in ("download",) if timings.result_cached else PHASES:
            self._metrics.observe_phase(phase, getattr(timings, f"{phase}_seconds"))


def _result(outcomes: list[ModelOutcome]) -> CompetitionResult:
    losses = [outcome.evaluation.result.loss if outcome.evaluation else None for outcome in outcomes]
    winner = pick_winner(losses)
    if winner is None:
        raise _first_retryable([outcome.error for outcome in outcomes if outcome.error])
    error = outcomes[winner].error
    if error is not None:
        raise error
    lead = margin(losses)
    winner_loss = losses[winner]
    assert winner_loss is not None
    return CompetitionResult(winner, tuple(outcomes), lead, is_near_tie(winner_loss, lead))


def _first_retryable(errors: list[ScoringError]) -> ScoringError:
    """The first of the models' errors that a retry may cure; without one, the first of all.

    While one model may still be evaluated on a retry, no final error is raised for the competition.
    """
    return next((error for error in errors if error.retryable), errors[0])


def _with_distance(
    evaluation: Evaluation, target: tuple[float, ...] | None, model_index: int
) -> ModelOutcome:
    """The outcome with its distance. A model whose distance is undefined still competes, with an error beside."""
    if target is None:
        return ModelOutcome(evaluation)
    try:
        distance = cosine_distance(evaluation.result.embedding, target)
    except ZeroEmbedding as error:
        return ModelOutcome(evaluation, error.with_model_index(model_index))
    return ModelOutcome(replace(evaluation, distance=distance))


def _evaluation(job: EvalJob, architecture: str, computed: Computed, timings: Timings) -> Evaluation:
    provenance = Provenance(
        weights_checksum=job.weights_checksum,
        data_checksum=job.data_checksum,
        seed=job.seed,
        architecture_version=job.architecture_version,
        numerics_version=computed.numerics_version,
        computed_at=computed.computed_at,
        architecture=architecture,
    )
    return Evaluation(computed.result, None, provenance, timings)


def _where_cached(weights: CachedBlob, computed: Computed) -> WeightsCached:
    if computed.result.load_seconds == 0.0 and not computed.was_kept:
        return "device"
    return "disk" if weights.was_cached else "no"
