"""One screen from start to end: admission, the models' files, groups of pieces, a result for each piece.

API ──► Screener.screen ──► Scheduler.admit
            │
            ├─ every model's weights are fetched once; one that its owner gets wrong costs the others nothing
            ├─ pieces, as they come ──► groups of as many as share a forward pass, or as take some seconds
            │     and for each group ──► every ScreenedModel: kept? else Scheduler.queue_entry ──► WorkerPool
            ▼
        a PieceResult for each piece as soon as it is known; at last the ScreenSummary
"""

import asyncio
import time
from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, aclosing

from service.cache.blob_cache import BlobCache
from service.checksum import checksum_of
from service.errors import ScoringError
from service.scoring.evaluator import Evaluator
from service.scoring.input_files import InputFiles
from service.scoring.kept_pieces import KeptPieces
from service.scoring.limits import Limits
from service.scoring.piece_groups import GroupSize, in_groups
from service.scoring.results import ignore_progress
from service.scoring.scheduler import Scheduler
from service.scoring.screen import ModelResult, Piece, PieceResult, Screen, ScreenSummary, measure
from service.scoring.screened_model import PieceInput, ScreenedModel
from service.scoring.task_errors import all_at_once, first_of_ours, own_trouble
from workers.pool import WorkerPool
from workers.types import EvalResult

Emit = Callable[[PieceResult], Awaitable[None]]
"""Takes one result. While it waits, for a reader that is slow, no further pieces are begun."""


class Screener:
    """Answers screens, with the same parts as the `Scorer` answers competitions."""

    def __init__(
        self,
        cache: BlobCache,
        scheduler: Scheduler,
        pool: WorkerPool,
        evaluator: Evaluator,
        kept: KeptPieces,
        limits: Limits,
    ) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._pool = pool
        self._evaluator = evaluator
        self._kept = kept
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
        self._limits.check_num_models(len(screen.models), "screen")
        with own_trouble():
            async with self._scheduler.admit(len(screen.models)) as ticket:
                if on_admitted is not None:
                    await on_admitted()
                files = InputFiles(self._cache, self._scheduler, ticket, ignore_progress, self._limits)
                models = [
                    ScreenedModel(
                        index,
                        screen,
                        architecture=self._limits.architecture,
                        architecture_version=self._limits.architecture_version,
                        files=files,
                        scheduler=self._scheduler,
                        ticket=ticket,
                        pool=self._pool,
                        evaluator=self._evaluator,
                        kept=self._kept,
                    )
                    for index in range(len(screen.models))
                ]
                running = _RunningScreen(screen, models, files, self._limits, emit)
                return await running.run(pieces, groups_at_once=len(self._pool.status()) + 1)


class _RunningScreen:
    """One admitted screen."""

    def __init__(
        self, screen: Screen, models: list[ScreenedModel], files: InputFiles, limits: Limits, emit: Emit
    ) -> None:
        self._screen = screen
        self._models = models
        self._files = files
        self._limits = limits
        self._emit = emit
        self._emitting = asyncio.Lock()
        self._architecture = limits.architecture
        self._group_size = GroupSize(self._architecture.num_sequences(self._architecture.batch_bytes))
        self._summary = ScreenSummary()

    async def run(self, pieces: AsyncIterable[Piece], *, groups_at_once: int) -> ScreenSummary:
        """Every piece, a few groups at once."""
        started = time.monotonic()
        await all_at_once(model.fetch() for model in self._models)
        room = asyncio.Semaphore(groups_at_once)
        coming = in_groups(pieces, self._num_sequences, lambda: self._group_size.most)
        try:
            async with asyncio.TaskGroup() as tasks, aclosing(coming) as groups:
                async for group in groups:
                    await room.acquire()
                    task = tasks.create_task(self._screen_group(group))
                    task.add_done_callback(lambda _: room.release())
        except BaseExceptionGroup as failures:  # the first has cancelled the others
            raise first_of_ours(failures.exceptions) from None
        self._summary.seconds = time.monotonic() - started
        return self._summary

    def _num_sequences(self, piece: Piece) -> int:
        """As far as it is known before the data is here."""
        size = len(piece.data) if isinstance(piece.data, bytes) else getattr(piece.data, "size", None)
        return max(1, self._architecture.num_sequences(size or 1))

    async def _screen_group(self, group: list[Piece]) -> None:
        async with AsyncExitStack() as pins:
            inputs = await all_at_once(self._input(piece, pins) for piece in group)
            good = [each for each in inputs if isinstance(each, PieceInput)]
            columns = await all_at_once(model.evaluate(good) for model in self._models)
        computed = list(filter(None, map(_computed, columns)))
        self._group_size.learn(
            sum(map(self._num_sequences, group)),
            eval_seconds=sum(max(each.eval_seconds for each in of_model) for of_model in computed),
            load_seconds=sum(max(each.load_seconds for each in of_model) for of_model in computed),
        )
        rows = iter(zip(*columns, strict=True))
        for piece, each in zip(group, inputs, strict=True):
            if isinstance(each, ScoringError):
                result = PieceResult(piece.id, error=each)
            else:
                results = next(rows)
                result = PieceResult(piece.id, results, measure(self._screen.targets, results))
            async with self._emitting:
                self._summary.count(result)
                await self._emit(result)

    async def _input(self, piece: Piece, pins: AsyncExitStack) -> PieceInput | ScoringError:
        """The data of a piece, or the error that is its own."""
        try:
            match piece.data:
                case ScoringError():
                    return piece.data
                case bytes() as data:
                    self._limits.check_inline_data(len(data))
                    if len(data) <= self._architecture.batch_bytes:
                        return PieceInput(data, checksum_of(data))
            blob = await pins.enter_async_context(self._files.data(piece.data))
            if blob.size <= self._architecture.batch_bytes:
                return PieceInput(await asyncio.to_thread(blob.path.read_bytes), blob.checksum)
            return PieceInput(blob, blob.checksum)
        except ScoringError as error:
            if error.fault == "service":
                raise
            return error


def _computed(results: Sequence[ModelResult]) -> list[EvalResult]:
    """Of one model's results those that were not kept. Pieces that share a task all have its times."""
    return [each.result for each in results if each.result is not None and not each.was_kept]
