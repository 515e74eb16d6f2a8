"""Answers a question with workers of this process's own: no server, files evaluated where they lie."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from service.blob import BlobRef
from service.cache.blob_cache import BlobCache
from service.cli.diagnosis import Expected, Finding
from service.cli.encryption import commitment_of, commitment_of_plain
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
from service.lifespan import open_pool, open_private_cache
from service.scoring.competition import cosine_distance
from service.scoring.worker_errors import to_scoring_error
from workers import errors
from workers.architectures import CURRENT_VERSION, load_architecture
from workers.pool import WorkerPool
from workers.types import EvalJob, EvalProgress, EvalResult


async def score_locally(question: Question, settings: Settings, on_progress: OnProgress) -> ScoreSheet:
    """Evaluate every candidate; one that fails costs the others nothing.

    Cancelling ends the workers, whatever they do. Raises a WorkerError if none can start, and a ScoringError
    or OSError where the cache of weights from a URL cannot be used.
    """
    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(_cache_for(question, settings))
        pool = await stack.enter_async_context(open_pool(settings))
        scoring = _Scoring(question, settings, pool, cache, on_progress)
        return await score_all(question, scoring.score)


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
    data_checksums = await asyncio.to_thread(_data_checksums, question)
    for data in question.data:
        data.check_unchanged()
    outcomes = (_error_if_changed(task.result(), state) for task, state in zip(tasks, states, strict=True))
    return ScoreSheet(question, tuple(outcomes), data_checksums)


def _data_checksums(question: Question) -> tuple[str, ...]:
    return tuple(commitment_of(data.path).checksum for data in question.data) if question.checksums else ()


def _state_of_weights(candidate: Candidate) -> FileState | None:
    return None if candidate.is_url else state_of(Path(candidate.weights))


def _error_if_changed(outcome: Outcome, before: FileState | None) -> Outcome:
    if _state_of_weights(outcome.candidate) == before:
        return outcome
    error = FileChanged(
        "the file was changed, replaced or removed while the candidates were evaluated", blob="model"
    )
    return Outcome(outcome.candidate, error=error)


class _Scoring:
    """The scoring of one question by one pool."""

    def __init__(
        self,
        question: Question,
        settings: Settings,
        pool: WorkerPool,
        cache: BlobCache | None,
        on_progress: OnProgress,
    ) -> None:
        self._question = question
        self._settings = settings
        self._pool = pool
        self._cache = cache
        self._on_progress = on_progress
        self._architecture = load_architecture(CURRENT_VERSION)
        # With one run each, the next candidate loads while another is evaluated; with more, two candidates
        # that alternate on one device would evict each other's weights from its memory.
        spare = 1 if question.num_runs == 1 else 0
        self._slots = asyncio.Semaphore(len(pool.status()) + spare)

    async def score(self, index: int) -> Outcome:
        """All runs of one candidate, or why there is none."""
        candidate = self._question.candidates[index]
        self._on_progress(CandidateProgress(index, "waiting"))
        try:
            async with self._weights(index) as (path, identity), self._slots:
                outcome = await self._evaluate_runs(index, candidate, path, identity)
        except ScoringError as error:
            outcome = Outcome(candidate, error=error)
        self._on_progress(CandidateProgress(index, "done" if outcome.error is None else "failed"))
        return outcome

    async def _evaluate_runs(self, index: int, candidate: Candidate, path: Path, identity: str) -> Outcome:
        started = time.monotonic()
        try:
            runs = await self._runs(index, candidate, path, identity)
        except (WeightsInvalid, DecryptionFailed) as error:
            return Outcome(candidate, error=error, findings=await self._why_refused(candidate, path))
        seconds = time.monotonic() - started
        return Outcome(candidate, runs, seconds=seconds, checksums=await self._checksums(path, candidate.key))

    async def _why_refused(self, candidate: Candidate, path: Path) -> tuple[Finding, ...]:
        """What `check` finds in the same file; nothing where it can no longer be read."""
        expected, is_upload = Expected(candidate.key), candidate.is_url
        try:
            checked = await check_header(FileHead(path), expected, self._settings, is_upload=is_upload)
        except OSError:
            return ()
        return tuple(checked.findings)

    async def _checksums(self, path: Path, key: bytes | None) -> WeightsChecksums | None:
        if not self._question.checksums:
            return None
        try:
            file = await asyncio.to_thread(commitment_of, path)
            plain = file if key is None else await asyncio.to_thread(commitment_of_plain, path, key)
        except OSError as error:
            raise FileUnreadable(f"the file could not be read: {error.strerror}") from error
        return WeightsChecksums(file.checksum, plain.checksum)

    async def _runs(self, index: int, candidate: Candidate, path: Path, identity: str) -> tuple[Run, ...]:
        num_batches = [self._architecture.num_batches(data.size) for data in self._question.data]
        total = sum(num_batches) * len(self._question.seeds)
        runs: list[Run] = []
        done = 0
        for data, batches in zip(self._question.data, num_batches, strict=True):
            for seed in self._question.seeds:
                job = EvalJob(
                    weights_path=str(path),
                    weights_checksum=identity,
                    data_path=str(data.path),
                    data_size=data.size,
                    seed=seed,
                    decryption_key=candidate.key,
                    architecture_version=CURRENT_VERSION,
                    detail=self._question.detail and seed == self._question.seeds[0],
                )
                result = await self._evaluate(job, self._report_batches(index, done, total))
                runs.append(self._run(data, seed, result))
                done += batches
        return tuple(runs)

    async def _evaluate(self, job: EvalJob, on_progress: Callable[[EvalProgress], None]) -> EvalResult:
        try:
            return await self._pool.evaluate(job, on_progress)
        except errors.FileUnreadable as error:
            raise FileUnreadable(error.detail) from error
        except errors.WorkerError as error:
            raise to_scoring_error(error, "client") from error

    def _run(self, data: HeldOut, seed: int, result: EvalResult) -> Run:
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
            token_cross_entropy=result.token_cross_entropy,
        )

    @asynccontextmanager
    async def _weights(self, index: int) -> AsyncIterator[tuple[Path, str]]:
        """Where the file lies, and a name for its bytes."""
        candidate = self._question.candidates[index]
        if not candidate.is_url:
            yield Path(candidate.weights), _identity(Path(candidate.weights))
            return
        assert self._cache is not None
        blob = BlobRef(candidate.weights, candidate.checksum, candidate.size)
        report = self._report_bytes(index)
        async with self._cache.fetch(
            blob, kind="model", max_bytes=self._settings.max_model_bytes, on_progress=report
        ) as cached:
            yield cached.path, cached.checksum

    def _report_batches(self, index: int, done: int, total: int) -> Callable[[EvalProgress], None]:
        def report(progress: EvalProgress) -> None:
            phase: Phase = "waiting" if progress.phase == "queued" else progress.phase
            self._on_progress(CandidateProgress(index, phase, done + progress.batches_done, total))

        return report

    def _report_bytes(self, index: int) -> Callable[[DownloadProgress], None]:
        def report(progress: DownloadProgress) -> None:
            self._on_progress(
                CandidateProgress(index, "downloading", progress.bytes_done, progress.bytes_total)
            )

        return report


def _identity(path: Path) -> str:
    """A key by which a worker knows whether it holds this file already. Raises FileUnreadable."""
    state = state_of(path)
    if state is None:
        raise FileUnreadable("the file could not be read: it is no longer there, or you may not read it")
    return hashlib.blake2b(repr((str(path.resolve()), state)).encode(), digest_size=16).hexdigest()


@asynccontextmanager
async def _cache_for(question: Question, settings: Settings) -> AsyncIterator[BlobCache | None]:
    """The cache of blobs, if there are weights to fetch."""
    if not any(candidate.is_url for candidate in question.candidates):
        yield None
        return
    async with open_private_cache(settings) as cache:
        yield cache
