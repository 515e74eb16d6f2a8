"""Answers a question with workers of this process's own: no server, files evaluated where they lie."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from service.blob import BlobRef
from service.cache.blob_cache import BlobCache
from service.cli.diagnosis import Expected, Finding
from service.cli.encryption import Commitment, commitment_of, commitment_of_plain
from service.cli.header_check import FileHead, check_header
from service.cli.score.file_state import FileChanged, FileState, FileUnreadable, state_of
from service.cli.score.held_out import HeldOut
from service.cli.score.question import Candidate, Question
from service.cli.score.score_sheet import (
    CandidateProgress,
    OnProgress,
    Outcome,
    Phase,
    Run,
    ScoreSheet,
    WeightsChecksums,
)
from service.config import Settings
from service.download.throughput import DownloadProgress
from service.errors import DecryptionFailed, ScoringError, WeightsInvalid
from service.lifespan import open_kept_results, open_pool, open_private_cache, served_model
from service.metrics import Metrics
from service.scoring.competition import cosine_distance
from service.scoring.evaluator import Computed, Evaluator
from service.scoring.served_architecture import architecture_of
from service.scoring.worker_errors import to_scoring_error
from workers import errors
from workers.architectures import CURRENT_VERSION
from workers.types import EvalJob, EvalProgress


async def score_locally(question: Question, settings: Settings, on_progress: OnProgress) -> ScoreSheet:
    """Evaluate every candidate; one that fails costs the others nothing.

    Cancelling ends the workers, whatever they do. Raises a WorkerError if none can start, and a ScoringError
    or OSError where the cache of weights from a URL cannot be used.
    """
    async with _cache_for(question, settings) as cache, open_workers(settings) as workers:
        return await workers.score(question, on_progress, cache)


class LocalWorkers:
    """Workers of this process's own, for one question after another."""

    def __init__(self, settings: Settings, evaluator: Evaluator, num_workers: int) -> None:
        self._settings = settings
        self._evaluator = evaluator
        self._num_workers = num_workers

    async def score(
        self, question: Question, on_progress: OnProgress, cache: BlobCache | None = None
    ) -> ScoreSheet:
        """Evaluate every candidate; one that fails costs the others nothing. `cache` is for weights from a URL.

        Cancelling ends the evaluations. Raises FileChanged where data changes.
        """
        data_checksums = await asyncio.to_thread(_data_checksums, question)
        scoring = _Scoring(
            question,
            data_checksums,
            self._settings,
            self._evaluator,
            cache,
            on_progress,
            num_workers=self._num_workers,
        )
        sheet = await score_all(question, scoring.score)
        return replace(sheet, data_checksums=data_checksums)


@asynccontextmanager
async def open_workers(settings: Settings) -> AsyncIterator[LocalWorkers]:
    """Workers and the kept results, while inside. Raises a WorkerError if no worker can start."""
    async with open_pool(settings) as pool, open_kept_results(settings) as kept:
        evaluator = Evaluator(pool, kept, served_model(settings), Metrics())
        yield LocalWorkers(settings, evaluator, len(pool.status()))


async def score_all(question: Question, score: Callable[[int], Coroutine[None, None, Outcome]]) -> ScoreSheet:
    """The outcome of every candidate, all at once; the first that raises ends the others.

    A candidate whose file changes until all are done has the error FileChanged in place of a number.
    Raises FileChanged where data changes.
    """
    states = [_state_of_weights(candidate) for candidate in question.candidates]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(score(i)) for i in range(len(question.candidates))]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    for data in question.data:
        data.check_unchanged()
    outcomes = (_error_if_changed(task.result(), state) for task, state in zip(tasks, states, strict=True))
    return ScoreSheet(question, tuple(outcomes))


def _data_checksums(question: Question) -> tuple[str, ...]:
    return tuple(commitment_of(data.path).checksum for data in question.data)


def _state_of_weights(candidate: Candidate) -> FileState | None:
    return None if candidate.is_url else state_of(Path(candidate.weights))


def _error_if_changed(outcome: Outcome, before: FileState | None) -> Outcome:
    try:
        _check_unchanged(outcome.candidate, before)
    except FileChanged as error:
        return Outcome(outcome.candidate, error=error)
    return outcome


def _check_unchanged(candidate: Candidate, before: FileState | None) -> None:
    if _state_of_weights(candidate) != before:
        raise FileChanged(
            "the file was changed, replaced or removed while the candidates were evaluated", blob="model"
        )


@dataclass(frozen=True, slots=True)
class _Weights:
    """One candidate's file, and what it was when its checksum was taken."""

    candidate: Candidate
    path: Path
    checksum: str
    """Blake2b-256, Base58."""
    state: FileState | None
    """None for a file in the cache, which nobody changes."""


class _Scoring:
    """The scoring of one question by one pool."""

    def __init__(
        self,
        question: Question,
        data_checksums: tuple[str, ...],
        settings: Settings,
        evaluator: Evaluator,
        cache: BlobCache | None,
        on_progress: OnProgress,
        *,
        num_workers: int,
    ) -> None:
        """`data_checksums` are those of the question's files of data."""
        self._question = question
        self._data_checksums = data_checksums
        self._settings = settings
        self._evaluator = evaluator
        self._cache = cache
        self._on_progress = on_progress
        self._architecture = architecture_of(settings)
        # With one run each, the next candidate loads while another is evaluated; with more, two candidates
        # that alternate on one device would evict each other's weights from its memory.
        spare = 1 if question.num_runs == 1 else 0
        self._slots = asyncio.Semaphore(num_workers + spare)

    async def score(self, index: int) -> Outcome:
        """All runs of one candidate, or why there is none."""
        candidate = self._question.candidates[index]
        self._on_progress(CandidateProgress(index, "waiting"))
        try:
            async with self._weights(index) as weights, self._slots:
                outcome = await self._evaluate_runs(index, weights)
        except ScoringError as error:
            outcome = Outcome(candidate, error=error)
        self._on_progress(CandidateProgress(index, "done" if outcome.error is None else "failed"))
        return outcome

    async def _evaluate_runs(self, index: int, weights: _Weights) -> Outcome:
        started = time.monotonic()
        candidate = weights.candidate
        try:
            runs = await self._runs(index, weights)
        except (WeightsInvalid, DecryptionFailed) as error:
            return Outcome(candidate, error=error, findings=await self._why_refused(candidate, weights.path))
        seconds = time.monotonic() - started
        return Outcome(candidate, runs, seconds=seconds, checksums=await self._checksums(weights))

    async def _why_refused(self, candidate: Candidate, path: Path) -> tuple[Finding, ...]:
        """What `check` finds in the same file; nothing where it can no longer be read."""
        expected, is_upload = Expected(candidate.key), candidate.is_url
        try:
            checked = await check_header(FileHead(path), expected, self._settings, is_upload=is_upload)
        except OSError:
            return ()
        return tuple(checked.findings)

    async def _checksums(self, weights: _Weights) -> WeightsChecksums | None:
        if not self._question.checksums:
            return None
        key, plain = weights.candidate.key, weights.checksum
        if key is not None:
            plain = await _checksum(lambda: commitment_of_plain(weights.path, key))
        return WeightsChecksums(weights.checksum, plain)

    async def _runs(self, index: int, weights: _Weights) -> tuple[Run, ...]:
        num_batches = [self._architecture.num_batches(data.size) for data in self._question.data]
        total = sum(num_batches) * len(self._question.seeds)
        runs: list[Run] = []
        done = 0
        for data, checksum, batches in zip(
            self._question.data, self._data_checksums, num_batches, strict=True
        ):
            for seed in self._question.seeds:
                job = EvalJob(
                    weights_path=str(weights.path),
                    weights_checksum=weights.checksum,
                    data_path=str(data.path),
                    data_size=data.size,
                    data_checksum=checksum,
                    seed=seed,
                    decryption_key=weights.candidate.key,
                    architecture_version=CURRENT_VERSION,
                    detail=self._question.detail and seed == self._question.seeds[0],
                )
                unchanged = self._unchanged(weights, data)
                computed = await self._evaluate(job, unchanged, self._report_batches(index, done, total))
                runs.append(self._run(data, seed, computed))
                done += batches
        return tuple(runs)

    async def _evaluate(
        self,
        job: EvalJob,
        unchanged: AbstractContextManager[None],
        on_progress: Callable[[EvalProgress], None],
    ) -> Computed:
        anew = self._question.compute_anew
        try:
            return await self._evaluator.evaluate(job, unchanged, on_progress, anew=anew)
        except errors.FileUnreadable as error:
            raise FileUnreadable(error.detail) from error
        except errors.WorkerError as error:
            raise to_scoring_error(error, "client") from error

    @contextmanager
    def _unchanged(self, weights: _Weights, data: HeldOut) -> Iterator[None]:
        """Raises FileChanged after the block if a file is not the one that its checksum was taken of."""
        yield
        data.check_unchanged()
        if weights.state is not None:
            _check_unchanged(weights.candidate, weights.state)

    def _run(self, data: HeldOut, seed: int, computed: Computed) -> Run:
        result = computed.result
        target = self._question.target
        num_tokens, num_predicted = self._architecture.count_targets(data.size)
        return Run(
            data=data.name,
            seed=seed,
            loss=result.loss,
            cross_entropy=result.cross_entropy,
            sig_reg=result.sig_reg,
            embedding=result.embedding,
            distance=cosine_distance(result.embedding, target) if target and result.embedding.any() else None,
            attends_to_future=result.attends_to_future,
            num_tokens=num_tokens,
            num_predicted=num_predicted,
            load_seconds=result.load_seconds,
            eval_seconds=result.eval_seconds,
            precision=result.precision,
            device=result.device,
            versions=result.versions,
            numerics_version=computed.numerics_version,
            computed_at=computed.computed_at,
            result_cached=computed.was_kept,
            token_cross_entropy=result.token_cross_entropy,
        )

    @asynccontextmanager
    async def _weights(self, index: int) -> AsyncIterator[_Weights]:
        """Where the file lies, and its checksum. Raises FileUnreadable and what BlobCache.fetch raises."""
        candidate = self._question.candidates[index]
        if not candidate.is_url:
            path = Path(candidate.weights)
            state = state_of(path)
            yield _Weights(candidate, path, await _checksum(lambda: commitment_of(path)), state)
            return
        assert self._cache is not None
        blob = BlobRef(candidate.weights, candidate.checksum, candidate.size)
        report = self._report_bytes(index)
        async with self._cache.fetch(
            blob, kind="model", max_bytes=self._settings.max_model_bytes, on_progress=report
        ) as cached:
            yield _Weights(candidate, cached.path, cached.checksum, None)

    def _report_batches(self, index: int, done: int, total: int) -> Callable[[EvalProgress], None]:
        def report(progress: EvalProgress) -> None:
            phase: Phase = "waiting" if progress.phase == "queued" else progress.phase
            batches = done + progress.batches_done + progress.batches_in_part
            self._on_progress(CandidateProgress(index, phase, batches, total))

        return report

    def _report_bytes(self, index: int) -> Callable[[DownloadProgress], None]:
        def report(progress: DownloadProgress) -> None:
            self._on_progress(
                CandidateProgress(index, "downloading", progress.bytes_done, progress.bytes_total)
            )

        return report


async def _checksum(commitment: Callable[[], Commitment]) -> str:
    """The checksum of a file that is read for it. Raises FileUnreadable."""
    try:
        return (await asyncio.to_thread(commitment)).checksum
    except OSError as error:
        raise FileUnreadable(f"the file could not be read: {error.strerror}") from error


@asynccontextmanager
async def _cache_for(question: Question, settings: Settings) -> AsyncIterator[BlobCache | None]:
    """The cache of blobs, if there are weights to fetch."""
    if not any(candidate.is_url for candidate in question.candidates):
        yield None
        return
    async with open_private_cache(settings) as cache:
        yield cache
