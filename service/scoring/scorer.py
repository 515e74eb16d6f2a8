"""One request from start to end: admission, blobs, evaluations, the verdict. Read this file first.

door ──► Scorer.score ──► Scheduler.admit      queue-full is said now, before a byte is fetched
             │
             ├─ data ────► BlobCache ──► Downloader ──► (address guard)
             ├─ model 0 ─► BlobCache ─┐
             ├─ model 1 ─► BlobCache ─┤ each as soon as its own weights and the data are there
             │                        └► Scheduler.execution_slot ──► WorkerPool.evaluate
             ▼
         CompetitionResult: the winner, its distance to the target, and every model's own outcome
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from service.blob import BlobRef
from service.cache.blob_cache import BlobCache, CachedBlob
from service.download.throughput import DownloadProgress
from service.errors import (
    BlobKind,
    BlobTooLarge,
    EmptyData,
    Fault,
    InvalidRequest,
    ScoringError,
    SizeMismatch,
    ZeroEmbedding,
    exhaustion_of,
)
from service.log import log_bug
from service.metrics import Metrics
from service.scoring.competition import (
    Competition,
    ModelManifest,
    cosine_distance,
    is_near_tie,
    margin,
    pick_winner,
)
from service.scoring.download_watch import DownloadWatch, SlotWanted
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
from service.scoring.scheduler import Scheduler, Ticket, WeightsSlot
from service.scoring.worker_errors import to_scoring_error
from workers.errors import WorkerError
from workers.pool import WorkerPool
from workers.types import EvalJob, EvalProgress, EvalResult


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request may ask for."""

    embedding_dim: int
    """Length of a target embedding: that of the architecture served."""
    max_data_bytes: int
    max_model_bytes: int
    max_models: int
    architecture_version: str


@dataclass(eq=False, slots=True)
class _Request:
    """A competition on its way: what its parts share."""

    competition: Competition
    ticket: Ticket
    on_progress: OnProgress
    started: float = field(default_factory=time.monotonic)

    @property
    def data_fault(self) -> Fault:
        """Who is at fault when the data is."""
        return "client" if isinstance(self.competition.data, bytes) else "data_submitter"


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

    async def score(
        self, competition: Competition, on_progress: OnProgress = ignore_progress
    ) -> CompetitionResult:
        """Evaluate every model on the data with the seed, and name the winner.

        A model that cannot be fetched or judged has its error in its outcome. Raises that error when no
        model is valid, or when the winner's distance is undefined. Any error of the data or of this service
        itself is raised: a winner named without a model that we failed to judge would be misleading.
        That holds for time too: a file that does not come in time is its publisher's DownloadTimeout, but an
        evaluation that does not end in time says nothing of the weights that would hold on a faster machine, and the
        whole request is DeadlineExceeded.
        Cancelling the task stops all its work.
        """
        self._check(competition)
        try:
            async with self._scheduler.admit(len(competition.models)) as ticket:
                request = _Request(competition, ticket, _harmless(on_progress))
                request.on_progress(Progress("admitted"))
                outcomes = await self._evaluate_all(request)
        except ScoringError:
            raise
        except Exception as error:
            trouble = exhaustion_of(error)
            if trouble is None:
                raise
            log_bug(error)
            raise trouble from error
        return _verdict(outcomes)

    async def evaluate(
        self, competition: Competition, on_progress: OnProgress = ignore_progress
    ) -> Evaluation:
        """Score a competition of one model; its error is raised."""
        return (await self.score(competition, on_progress)).winning

    def _check(self, competition: Competition) -> None:
        """What can be told before anything is fetched."""
        limits = self._limits
        if not 1 <= len(competition.models) <= limits.max_models:
            raise InvalidRequest(f"a competition must have 1 to {limits.max_models} models")
        if isinstance(competition.data, bytes):
            if not competition.data:
                raise EmptyData("the data is empty", fault="client", blob="data")
            if len(competition.data) > limits.max_data_bytes:
                detail = f"the data has more than {limits.max_data_bytes} bytes"
                raise BlobTooLarge(detail, blob="data", fault="client")
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
                    data = group.create_task(pins.enter_async_context(self._data(request)))
                    outcomes = [
                        group.create_task(self._outcome(request, index, model, data))
                        for index, model in enumerate(models)
                    ]
            except BaseExceptionGroup as failures:  # the first has cancelled the others
                raise _most_innocent(failures.exceptions) from None
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
            request.on_progress(Progress("failed", model_index=index))
            return ModelOutcome(error=error.with_model_index(index))
        finally:
            request.ticket.num_finished += 1
        request.on_progress(Progress("done", model_index=index))
        return _with_distance(evaluation, request.competition.target_embedding, index)

    async def _evaluate(
        self, request: _Request, index: int, model: ModelManifest, data: asyncio.Task[CachedBlob]
    ) -> Evaluation:
        async with self._files(request, index, model.weights, data) as (weights, data_blob):
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
            waiting_since = time.monotonic()
            request.on_progress(Progress("queued", model_index=index))
            async with self._scheduler.execution_slot(request.ticket):
                queue_seconds = time.monotonic() - waiting_since
                try:
                    result = await self._pool.evaluate(job, _report_batches(request.on_progress, index))
                except WorkerError as error:
                    raise to_scoring_error(error, request.data_fault) from error
        timings = Timings(
            queue_seconds=queue_seconds,
            download_seconds=max(weights.download_seconds, data_blob.download_seconds),
            load_seconds=result.load_seconds,
            eval_seconds=result.eval_seconds,
            total_seconds=time.monotonic() - request.started,
            weights_cached=_where_cached(weights, result),
        )
        self._observe(timings)
        return _evaluation(job, data_blob, result, timings)

    @asynccontextmanager
    async def _files(
        self, request: _Request, index: int, published: BlobRef, data: asyncio.Task[CachedBlob]
    ) -> AsyncIterator[tuple[CachedBlob, CachedBlob]]:
        """One model's weights and the data, both here for the length of the block."""
        async with self._weights(request, index, published) as weights:
            if data.done():
                yield weights, data.result()
                return
        # Weights that wait for slow data hold nothing that others need; they stay in the cache.
        await asyncio.wait([data])
        known = replace(published, checksum=weights.checksum, size=weights.size)
        async with self._weights(request, index, known):
            yield weights, data.result()

    @asynccontextmanager
    async def _data(self, request: _Request) -> AsyncIterator[CachedBlob]:
        data = request.competition.data
        if isinstance(data, bytes):
            async with self._cache.hold(data) as blob:
                yield blob
            return
        # Bytes of another length are other bytes, and are told as such: so the checksum is looked at first.
        promised = data if data.checksum is None else replace(data, size=None)
        watch = self._watch(request, "data", self._limits.max_data_bytes)

        def on_progress(progress: DownloadProgress) -> None:
            watch.note(progress, is_slot_wanted=False)
            _report_bytes(request.on_progress, progress, "data", None)

        async with AsyncExitStack() as pins:
            fetching = self._cache.fetch(
                promised, kind="data", max_bytes=self._limits.max_data_bytes, on_progress=on_progress
            )
            blob = await watch.wait(pins.enter_async_context(fetching))
            if data.size not in (None, blob.size):
                raise SizeMismatch(f"the data has {blob.size} bytes, not the number promised", blob="data")
            if blob.size == 0:
                raise EmptyData("the data is empty", fault="data_submitter", blob="data")
            yield blob

    @asynccontextmanager
    async def _weights(self, request: _Request, index: int, published: BlobRef) -> AsyncIterator[CachedBlob]:
        """One model's weights, in a slot of the scheduler that others get meanwhile when they come too slowly."""
        most_bytes = self._most_bytes(published)
        watch = self._watch(request, "model", most_bytes)
        while True:
            size = self._cache.size_of(published)
            async with (
                self._scheduler.weights_slot(
                    request.ticket, most_bytes if size is None else size, is_downloaded=size is not None
                ) as slot,
                AsyncExitStack() as pins,
            ):
                if size is not None and self._cache.size_of(published) is None:
                    continue  # evicted while it waited for room

                def on_progress(progress: DownloadProgress, slot: WeightsSlot = slot) -> None:
                    watch.note(progress, is_slot_wanted=slot.is_wanted)
                    _report_bytes(request.on_progress, progress, "model", index)

                fetching = self._cache.fetch(
                    published, kind="model", max_bytes=self._limits.max_model_bytes, on_progress=on_progress
                )
                try:
                    weights = await watch.wait(pins.enter_async_context(fetching))
                except SlotWanted:
                    request.on_progress(Progress("queued", model_index=index))
                    continue
                slot.release_connection()
                yield weights
                return

    def _watch(self, request: _Request, kind: BlobKind, most_bytes: int) -> DownloadWatch:
        return DownloadWatch(
            kind,
            self._cache.download_limits,
            most_bytes=most_bytes,
            request_started=request.ticket.started,
            seconds_left=lambda: self._scheduler.seconds_for_downloads(request.ticket),
            is_online=self._cache.is_online,
        )

    def _most_bytes(self, weights: BlobRef) -> int:
        """How large the file is at most: what is promised, or else what is allowed."""
        most = self._limits.max_model_bytes
        return most if weights.size is None else min(weights.size, most)

    def _observe(self, timings: Timings) -> None:
        for phase in ("queue", "download", "load", "eval"):
            self._metrics.phase_seconds.labels(phase).observe(getattr(timings, f"{phase}_seconds"))


def _verdict(outcomes: list[ModelOutcome]) -> CompetitionResult:
    losses = [outcome.evaluation.loss if outcome.evaluation else None for outcome in outcomes]
    winner = pick_winner(losses)
    if winner is None:
        raise _most_telling([outcome.error for outcome in outcomes if outcome.error])
    error = outcomes[winner].error
    if error is not None:
        raise error
    lead = margin(losses)
    winner_loss = losses[winner]
    assert winner_loss is not None
    return CompetitionResult(winner, tuple(outcomes), lead, is_near_tie(winner_loss, lead))


def _most_innocent(errors: Sequence[BaseException]) -> BaseException:
    """Of errors that came at once the first that blames nobody but this service, else the first.

    Trouble of this machine may well be the cause of what is said of the others.
    """
    ours = (error for error in errors if not isinstance(error, ScoringError) or error.fault == "service")
    return next(ours, errors[0])


def _most_telling(errors: list[ScoringError]) -> ScoringError:
    """Of several models' errors one that a retry may cure, else the first: no verdict is final yet."""
    return next((error for error in errors if error.retryable), errors[0])


def _with_distance(
    evaluation: Evaluation, target: tuple[float, ...] | None, model_index: int
) -> ModelOutcome:
    """The distance decides nothing: without one the model still competes."""
    if target is None:
        return ModelOutcome(evaluation)
    try:
        distance = cosine_distance(evaluation.embedding, target)
    except ZeroEmbedding as error:
        return ModelOutcome(evaluation, error.with_model_index(model_index))
    return ModelOutcome(replace(evaluation, distance=distance))


def _evaluation(job: EvalJob, data: CachedBlob, result: EvalResult, timings: Timings) -> Evaluation:
    return Evaluation(
        loss=result.loss,
        cross_entropy=result.cross_entropy,
        sig_reg=result.sig_reg,
        embedding=result.embedding,
        distance=None,
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
    if result.load_seconds == 0.0:
        return "device"
    return "disk" if weights.was_cached else "no"


def _report_bytes(
    on_progress: OnProgress, progress: DownloadProgress, blob: BlobKind, model_index: int | None
) -> None:
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


def _harmless(on_progress: OnProgress) -> OnProgress:
    """The same; an error of the one who listens is logged, and costs no competition its result."""

    def tell(progress: Progress) -> None:
        try:
            on_progress(progress)
        except Exception as error:
            log_bug(error)

    return tell


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
