"""The watching itself: take the newest complete checkpoint, score it, show it, and say where it is a new best."""

import asyncio
import json
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.cli.score.file_state import FileChanged, state_of
from service.cli.score.question import Candidate, Question
from service.cli.score.score_sheet import OnProgress, Outcome, ScoreSheet, is_trouble
from service.cli.watch.checkpoint_folder import Checkpoint, CheckpointFolder, FileIncomplete, Pace
from service.cli.watch.display import Display
from service.cli.watch.leaderboard import Leaderboard, Row
from service.cli.watch.new_best import BestSoFar

Score = Callable[[Question, OnProgress], Coroutine[Any, Any, ScoreSheet]]
"""Answers a question, here or with a service."""
RunHook = Callable[[str], Coroutine[Any, Any, None]]
"""Runs the user's command with a line on its standard input."""

_FIRST_RETRY_SECONDS = 5.0
_MAX_RETRY_SECONDS = 300.0


class Watch:
    """Watches one folder. One event loop; one checkpoint at a time, for which all devices work together."""

    def __init__(
        self,
        question: Question,
        folder: Path,
        score: Score,
        display: Display,
        *,
        run_hook: RunHook | None = None,
        on_change: Callable[[Leaderboard], None] = lambda board: None,
        pace: Pace | None = None,
    ) -> None:
        """`question` has no candidates: every checkpoint is asked it. `on_change` is told of each row."""
        self._question = question
        self._pace = pace or Pace()
        self._folder = CheckpointFolder(folder, self._pace)
        self._score = score
        self._display = display
        self._run_hook = run_hook
        self._on_change = on_change
        self.board = Leaderboard(question, folder)
        self._best = BestSoFar()
        self._looked = asyncio.Event()
        self._hook_lines: asyncio.Queue[str] = asyncio.Queue()
        self._retry_seconds: dict[Path, float] = {}
        self._data_checksums: tuple[str, ...] = ()

    async def run(self, *, once: bool) -> None:
        """Score what comes, without end; or `once` what is there.

        Raises FileChanged where data changes, BadUsage where a service refuses what is asked, CommandFailed where
        nobody reads the output, and what `on_change` raises.
        """
        try:
            async with asyncio.TaskGroup() as group:
                hooks = group.create_task(self._run_hooks())
                if once:
                    await self._score_what_is_there()
                else:
                    group.create_task(self._keep_looking())
                    await self._keep_scoring()
                await self._hook_lines.join()
                hooks.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _score_what_is_there(self) -> None:
        await self._folder.look()
        if self._folder.waiting:
            await asyncio.sleep(self._pace.settle_seconds)
            await self._folder.look()
        while (checkpoint := await self._folder.take(at_once=True)) is not None:
            outcome = await self._outcome(checkpoint)
            if outcome is None:
                detail = "the file was changed, replaced or removed while it was evaluated"
                outcome = Outcome(_candidate(checkpoint), error=FileChanged(detail, blob="model"))
            self._add(checkpoint, outcome)
        self._start()

    async def _keep_looking(self) -> None:
        while True:
            await self._folder.look()
            self._looked.set()
            self._display.refresh(self.board, self._folder)
            await asyncio.sleep(self._pace.poll_seconds)

    async def _keep_scoring(self) -> None:
        await self._looked.wait()
        at_start, is_started = set(self._folder.waiting), False
        while True:
            at_start &= self._folder.present
            if not at_start and not is_started:
                self._start()
                is_started = True
            checkpoint = await self._folder.take()
            if checkpoint is None:
                self._looked.clear()
                await self._looked.wait()
                continue
            outcome = await self._outcome(checkpoint)
            at_start.discard(checkpoint.path)
            if outcome is not None:
                self._take_in(checkpoint, outcome, is_started)

    async def _outcome(self, checkpoint: Checkpoint) -> Outcome | None:
        """None where the file is no longer the one that was taken: it is waiting in its new state, or gone."""
        candidate = _candidate(checkpoint)
        if checkpoint.incomplete is not None:
            return Outcome(
                candidate, error=FileIncomplete(f"not a whole file: {checkpoint.incomplete}", blob="model")
            )
        question = replace(self._question, candidates=(candidate,))
        with self._display.scoring(question) as on_progress:
            sheet = await self._score(question, on_progress)
        if state_of(checkpoint.path) != checkpoint.state:
            return None
        self._data_checksums = sheet.data_checksums
        return sheet.outcomes[0]

    def _take_in(self, checkpoint: Checkpoint, outcome: Outcome, is_started: bool) -> None:
        """Add what came out, and see whether it is a new best; trouble that may pass is tried again, and said once."""
        retry_seconds = self._retry_seconds.pop(checkpoint.path, _FIRST_RETRY_SECONDS)
        if outcome.error is not None and is_trouble(outcome.error) and checkpoint.incomplete is None:
            self._folder.give_back(checkpoint, retry_seconds)
            self._retry_seconds[checkpoint.path] = min(2 * retry_seconds, _MAX_RETRY_SECONDS)
            if self._has_been_said(checkpoint, outcome):
                return
        row = self._add(checkpoint, outcome)
        if is_started and self.board.ranked[:1] == [row] and self._best.challenge(outcome):
            self._announce(row)

    def _has_been_said(self, checkpoint: Checkpoint, outcome: Outcome) -> bool:
        row = next((row for row in self.board.rows if row.path == checkpoint.path), None)
        before, now = None if row is None else row.outcome.error, outcome.error
        return before is not None and now is not None and before.full_code == now.full_code

    def _add(self, checkpoint: Checkpoint, outcome: Outcome) -> Row:
        row = Row(checkpoint.path, checkpoint.state, outcome)
        self.board.add(row, self._folder.present, self._data_checksums)
        self._display.scored(row, self.board)
        self._on_change(self.board)
        return row

    def _start(self) -> None:
        ranked = self.board.ranked
        if self._best.start([row.outcome for row in ranked]):
            self._announce(ranked[0])

    def _announce(self, row: Row) -> None:
        if self._run_hook is not None:
            self._hook_lines.put_nowait(json.dumps(self.board.json(row), allow_nan=False) + "\n")

    async def _run_hooks(self) -> None:
        """One at a time, in order, while scoring goes on."""
        while True:
            line = await self._hook_lines.get()
            if self._run_hook is not None:
                await self._run_hook(line)
            self._hook_lines.task_done()


def _candidate(checkpoint: Checkpoint) -> Candidate:
    return Candidate(str(checkpoint.path))
