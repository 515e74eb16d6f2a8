"""One screen from start to end: admission, the models' files, groups of pieces, a result for each piece.

API ──► Screener.screen ──► Scheduler.admit
            │
            ├─ every model's weights are fetched once; one that its owner gets wrong costs the others nothing
            ├─ pieces, as they come ──► groups of as many as share a forward pass
            │     and for each group ──► every model: Scheduler.execution_slot ──► WorkerPool.evaluate_pieces
            ▼
        a PieceResult for each piece as soon as it is known; at last the ScreenSummary
"""

import asyncio
import time
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Sequence,
)
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

from service.cache.blob_cache import BlobCache, CachedBlob
from service.errors import (
    BlobTooLarge,
    EmptyData,
    EvaluationCrashesWorker,
    InvalidRequest,
    ScoringError,
    exhaustion_of,
)
from service.log import log_bug
from service.scoring.competition import ModelManifest
from service.scoring.input_files import InputFiles
from service.scoring.results import ignore_progress
from service.scoring.scheduler import Scheduler, Ticket
from service.scoring.scorer import Limits, first_of_ours
from service.scoring.screen import (
    LocalWeights,
    ModelResult,
    Piece,
    PieceResult,
    Screen,
    ScreenSummary,
    measure,
)
from service.scoring.worker_errors import to_scoring_error
from workers import errors as worker_errors
from workers.pool import WorkerPool
from workers.types import EvalJob, EvalResult

T = TypeVar("T")

Emit = Callable[[PieceResult], Awaitable[None]]
"""Takes one result. While it waits, for a reader that is slow, no further pieces are begun."""

MAX_CRASHES = 2
"""Pieces of which one model may end workers before it is given up for the rest of the screen."""

GATHER_SECONDS = 0.05
"""How long a group that has room waits for another piece."""


class Screener:
    """Answers screens, with the same parts as the `Scorer` answers competitions."""

    def __init__(self, cache: BlobCache, scheduler: Scheduler, pool: WorkerPool, limits: Limits) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._pool = pool
        self._limits = limits

    async def screen(
        self,
        screen: Screen,
        pieces: AsyncIterable[Piece],
        emit: Emit,
        on_admitted: Callable[[], Awaitable[None]] | None = None,
    ) -> ScreenSummary:
        """Evaluate every piece with every model; `emit` gets the result of each piece, in the order they are done.

        A piece or a model that its owner gets wrong has its error in the results. Trouble of this service is
        raised, after the results that are known: a winner named without a model that this service failed to
        evaluate would be misleading. Cancelling the awaiting task stops all work.
        """
        if not 1 <= len(screen.models) <= self._limits.max_models:
            raise InvalidRequest(f"a screen must have 1 to {self._limits.max_models} models")
        try:
            async with self._scheduler.admit(len(screen.models)) as ticket:
                if on_admitted is not None:
                    await on_admitted()
                files = InputFiles(
                    self._cache,
                    self._scheduler,
                    ticket,
                    ignore_progress,
                    max_data_bytes=self._limits.max_data_bytes,
                    max_model_bytes=self._limits.max_model_bytes,
                )
                running = _RunningScreen(
                    screen, ticket, files, self._scheduler, self._pool, self._limits, emit
                )
                return await running.run(pieces)
        except ScoringError:
            raise
        except Exception as error:
            trouble = exhaustion_of(error)
            if trouble is None:
                raise
            log_bug(error)
            raise trouble from error


@dataclass(frozen=True, slots=True)
class _Input:
    """The data of one piece that is here: in memory, or in a file where it is more than one batch."""

    data: bytes | CachedBlob


class _RunningScreen:
    """One admitted screen."""

    def __init__(
        self,
        screen: Screen,
        ticket: Ticket,
        files: InputFiles,
        scheduler: Scheduler,
        pool: WorkerPool,
        limits: Limits,
        emit: Emit,
    ) -> None:
        self._screen = screen
        self._ticket = ticket
        self._files = files
        self._scheduler = scheduler
        self._pool = pool
        self._limits = limits
        self._emit = emit
        self._emitting = asyncio.Lock()
        self._architecture = limits.architecture
        self._weights = [model.weights for model in screen.models]
        """Each model's, with what is known of them by now; its error once it is given up."""
        self._num_crashes = [0] * len(screen.models)
        self._summary = ScreenSummary()

    async def run(self, pieces: AsyncIterable[Piece]) -> ScreenSummary:
        """Every piece, a few groups at once."""
        started = time.monotonic()
        await _all(self._fetch(index) for index in range(len(self._weights)))
        at_once = asyncio.Semaphore(len(self._pool.status()) + 1)
        try:
            async with asyncio.TaskGroup() as group, aclosing(self._groups(pieces)) as groups:
                async for some in groups:
                    await at_once.acquire()
                    task = group.create_task(self._screen_group(some))
                    task.add_done_callback(lambda _: at_once.release())
        except BaseExceptionGroup as failures:  # the first has cancelled the others
            raise first_of_ours(failures.exceptions) from None
        self._summary.seconds = time.monotonic() - started
        return self._summary

    # -- files

    async def _fetch(self, index: int) -> None:
        """Bring one model's weights to the cache, or learn why they cannot be had."""
        try:
            async with self._held_weights(index, is_counted=True):
                pass
        except ScoringError as error:
            self._give_up(index, error)

    @asynccontextmanager
    async def _held_weights(self, index: int, *, is_counted: bool = False) -> AsyncIterator[LocalWeights]:
        """One model's weights in a file, for the length of the block. Raises its error once it is given up.

        `is_counted`: whether the metrics of the cache count it, as they do once for a screen.
        """
        weights = self._weights[index]
        if isinstance(weights, ScoringError):
            raise weights
        if isinstance(weights, LocalWeights):
            yield weights
            return
        async with self._files.weights(index, weights.weights, is_counted=is_counted) as blob:
            known = replace(weights.weights, checksum=blob.checksum, size=blob.size)
            if isinstance(self._weights[index], ModelManifest):
                self._weights[index] = replace(weights, weights=known)
            yield LocalWeights(str(blob.path), blob.checksum, blob.size, weights.decryption_key)

    async def _input(self, piece: Piece, pins: AsyncExitStack) -> _Input | ScoringError:
        """The data of a piece, or the error that is its own."""
        try:
            match piece.data:
                case ScoringError():
                    return piece.data
                case bytes() as data:
                    self._check_size(len(data))
                    if len(data) <= self._architecture.batch_bytes:
                        return _Input(data)
            blob = await pins.enter_async_context(self._files.data(piece.data))
            if blob.size <= self._architecture.batch_bytes:
                return _Input(await asyncio.to_thread(blob.path.read_bytes))
            return _Input(blob)
        except ScoringError as error:
            if error.fault == "service":
                raise
            return error

    def _check_size(self, size: int) -> None:
        if size == 0:
            raise EmptyData("the data is empty", fault="client", blob="data")
        if size > self._limits.max_data_bytes:
            detail = f"the data has more than {self._limits.max_data_bytes} bytes"
            raise BlobTooLarge(detail, blob="data", fault="client")

    # -- groups

    async def _groups(self, pieces: AsyncIterable[Piece]) -> AsyncGenerator[list[Piece], None]:
        """Pieces in the order they come, as many together as make one batch, or as come in a short time."""
        most = self._architecture.num_sequences(self._architecture.batch_bytes)
        some: list[Piece] = []
        num_sequences = 0
        async with aclosing(_with_pauses(pieces, GATHER_SECONDS)) as coming:
            async for piece in coming:
                size = 0 if piece is None else self._num_sequences(piece)
                if some and (piece is None or num_sequences + size > most):
                    yield some
                    some, num_sequences = [], 0
                if piece is not None:
                    some.append(piece)
                    num_sequences += size
        if some:
            yield some

    def _num_sequences(self, piece: Piece) -> int:
        """As far as it is known before the data is here."""
        size = len(piece.data) if isinstance(piece.data, bytes) else getattr(piece.data, "size", None)
        return max(1, self._architecture.num_sequences(size or 1))

    async def _screen_group(self, group: list[Piece]) -> None:
        async with AsyncExitStack() as pins:
            inputs = await _all(self._input(piece, pins) for piece in group)
            good = [each for each in inputs if isinstance(each, _Input)]
            columns = await _all(self._evaluate(index, good) for index in range(len(self._weights)))
        rows = iter(zip(*columns, strict=True))
        for piece, each in zip(group, inputs, strict=True):
            if isinstance(each, ScoringError):
                result = PieceResult(piece.id, error=each)
            else:
                models = next(rows)
                result = PieceResult(piece.id, models, measure(self._screen.targets, models))
            async with self._emitting:
                self._summary.count(result)
                await self._emit(result)

    # -- one model on the pieces of one group

    async def _evaluate(self, index: int, inputs: Sequence[_Input]) -> list[ModelResult]:
        """One model's results on these pieces, in order."""
        small = [each.data for each in inputs if isinstance(each.data, bytes)]
        try:
            async with self._held_weights(index) as weights:
                results = iter(await self._evaluate_pieces(index, weights, small))
                return [
                    next(results)
                    if isinstance(each.data, bytes)
                    else await self._evaluate_file(index, weights, each.data)
                    for each in inputs
                ]
        except ScoringError as error:
            self._give_up(index, error)
            return [ModelResult(error=error.with_model_index(index)) for _ in inputs]

    async def _evaluate_pieces(
        self, index: int, weights: LocalWeights, pieces: Sequence[bytes]
    ) -> list[ModelResult]:
        """Together; where that ends workers, each by itself, so that only the one that does so has no result."""
        results: list[ModelResult] = []
        for some in self._packed(pieces):
            try:
                results += await self._evaluate_together(index, weights, some)
                continue
            except worker_errors.EvaluationRefused as refusal:
                raise to_scoring_error(refusal, "client") from refusal
            except worker_errors.WorkerError as error:
                if len(some) == 1:
                    results.append(self._crashed(index, error))
                    continue
                if not isinstance(error, _MAY_BE_ONE_PIECE):
                    raise to_scoring_error(error, "client") from error
            for piece in some:
                results += await self._evaluate_pieces(index, weights, [piece])
        return results

    async def _evaluate_together(
        self, index: int, weights: LocalWeights, pieces: Sequence[bytes]
    ) -> list[ModelResult]:
        if isinstance(error := self._weights[index], ScoringError):  # given up since this group was begun
            return [ModelResult(error=error) for _ in pieces]
        job = EvalJob.of_pieces(
            tuple(pieces),
            weights_path=weights.path,
            weights_checksum=weights.identity,
            weights_size=weights.size,
            seed=self._screen.seed,
            decryption_key=weights.decryption_key,
            architecture_version=self._limits.architecture_version,
        )
        async with self._scheduler.execution_slot(self._ticket):
            results = await self._pool.evaluate_pieces(job)
        return [_model_result(result, index) for result in results]

    async def _evaluate_file(self, index: int, weights: LocalWeights, data: CachedBlob) -> ModelResult:
        """A piece of several batches, which fills passes by itself."""
        job = EvalJob(
            weights_path=weights.path,
            weights_checksum=weights.identity,
            weights_size=weights.size,
            data_path=str(data.path),
            data_size=data.size,
            data_checksum=data.checksum,
            seed=self._screen.seed,
            decryption_key=weights.decryption_key,
            architecture_version=self._limits.architecture_version,
        )
        try:
            async with self._scheduler.execution_slot(self._ticket):
                return _model_result(await self._pool.evaluate(job), index)
        except worker_errors.NonFiniteResult as refusal:
            return _model_result(refusal, index)
        except worker_errors.EvaluationRefused as refusal:
            raise to_scoring_error(refusal, "client") from refusal
        except worker_errors.WorkerError as error:
            return self._crashed(index, error)

    def _packed(self, pieces: Sequence[bytes]) -> list[list[bytes]]:
        """As many together as make one batch: their sizes were not all known when the group was made."""
        most = self._architecture.num_sequences(self._architecture.batch_bytes)
        packed: list[list[bytes]] = []
        num_sequences = most
        for piece in pieces:
            size = self._architecture.num_sequences(len(piece))
            if num_sequences + size > most:
                packed.append([])
                num_sequences = 0
            packed[-1].append(piece)
            num_sequences += size
        return packed

    def _crashed(self, index: int, error: worker_errors.WorkerError) -> ModelResult:
        """One piece alone has ended workers: its error, if it is no trouble of this machine."""
        failure = to_scoring_error(error, "client")
        if not isinstance(failure, EvaluationCrashesWorker):
            raise failure from error
        self._num_crashes[index] += 1
        failure = failure.with_model_index(index)
        if self._num_crashes[index] >= MAX_CRASHES:
            self._give_up(index, failure)
        return ModelResult(error=failure)

    def _give_up(self, index: int, error: ScoringError) -> None:
        """From now on this is the model's answer. Raises the error where it is not its owner's."""
        if error.fault != "model_owner":
            raise error
        self._weights[index] = error.with_model_index(index)


_MAY_BE_ONE_PIECE = (
    worker_errors.EvaluationCrashesWorker,
    worker_errors.WorkerCrashed,
    worker_errors.OutOfMemory,
)
"""What may be the fault of one of several pieces that share a job."""


def _model_result(result: EvalResult | worker_errors.EvaluationRefused, index: int) -> ModelResult:
    if isinstance(result, EvalResult):
        return ModelResult(result)
    return ModelResult(error=to_scoring_error(result, "client").with_model_index(index))


async def _all(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """The results of all, at once. Raises the first error that is this service's fault, else the first."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in work]
    except BaseExceptionGroup as failures:
        raise first_of_ours(failures.exceptions) from None
    return [task.result() for task in tasks]


async def _with_pauses(pieces: AsyncIterable[Piece], seconds: float) -> AsyncGenerator[Piece | None, None]:
    """The pieces, and None where the next one takes longer than that."""
    source = aiter(pieces)
    coming = asyncio.create_task(_next(source))
    try:
        while True:
            await asyncio.wait([coming], timeout=seconds)
            if not coming.done():
                yield None
            piece = await coming
            if piece is None:
                return
            coming = asyncio.create_task(_next(source))
            yield piece
    finally:
        coming.cancel()
        await asyncio.wait([coming])


async def _next(source: AsyncIterator[Piece]) -> Piece | None:
    return await anext(source, None)
