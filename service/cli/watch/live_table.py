"""The leaderboard on a terminal: best first, what is done now above it, what failed below it."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from service.cli.printable import printable
from service.cli.score.question import Question
from service.cli.score.remarks import remarks
from service.cli.score.score_sheet import CandidateProgress, OnProgress
from service.cli.score.table import fitting_table
from service.cli.watch.checkpoint_folder import CheckpointFolder
from service.cli.watch.leaderboard import Leaderboard, Row

_LINES_AROUND_THE_TABLE = 18
_MIN_ROWS = 3
_MAX_FAILED = 3
_MAX_HOOK_OUTPUT_BYTES = 4096


class LiveTable:
    """A table that is drawn anew whenever something has changed."""

    def __init__(self, live: Live, folder: Path) -> None:
        self._live = live
        self._folder = folder
        self._doing = ""
        self._drawn: tuple[object, ...] = ()
        self._rows: list[RenderableType] = []

    def start(self, waits_for: str) -> None:
        """Say what the watch waits for before its first look."""
        self._live.update(self._status(waits_for), refresh=True)

    def end(self) -> None:
        """Leave the rows alone: nothing is being done any more."""
        self._live.update(Group(*self._rows), refresh=True)

    @contextmanager
    def scoring(self, question: Question) -> Iterator[OnProgress]:
        """Say how far the candidate has come."""
        name = printable(os.path.relpath(question.candidates[0].name, self._folder))
        began: float | None = None

        def on_progress(progress: CandidateProgress) -> None:
            nonlocal began
            if progress.phase == "evaluating" and began is None:
                began = time.monotonic()
            seconds = 0.0 if began is None else time.monotonic() - began
            self._doing = f"{name} {progress.phase}{_how_far(progress, seconds)}"

        self._doing = f"{name} waiting for a worker"
        try:
            yield on_progress
        finally:
            self._doing = ""

    def scored(self, row: Row, board: Leaderboard) -> None:
        """Draw it anew the next time."""
        self._drawn = ()

    def refresh(self, board: Leaderboard, folder: CheckpointFolder) -> None:
        """Draw what has changed."""
        shown = (self._doing, len(folder.waiting), folder.present, self._live.console.size, len(board.rows))
        if shown != self._drawn:
            self._drawn = shown
            self._rows = list(self._lines(board, folder))
            status = self._status(self._what_is_done(len(folder.waiting)))
            self._live.update(Group(status, *self._rows), refresh=True)

    @contextmanager
    def hook_output(self) -> Iterator[int]:
        """A descriptor for what a command prints within the block; its end is shown above the table."""
        with tempfile.TemporaryFile() as file:
            yield file.fileno()
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _MAX_HOOK_OUTPUT_BYTES))
            for line in file.read().decode(errors="replace").splitlines():
                self._live.console.print(Text(printable(line)))

    def _lines(self, board: Leaderboard, folder: CheckpointFolder) -> Iterator[RenderableType]:
        console = self._live.console
        max_rows = max(_MIN_ROWS, console.size.height - _LINES_AROUND_THE_TABLE)
        sheet = board.sheet(max_rows, _MAX_FAILED)
        if sheet.winner is not None:
            table, hidden = fitting_table(sheet, console)
            yield table
            if hidden is not None:
                yield hidden
        more = [
            _counted(len(board.ranked) - max_rows, "with a higher loss"),
            _counted(len(board.failed) - _MAX_FAILED, "without a loss"),
        ]
        gone = sum(row.path not in folder.present for row in board.rows)
        beside = [
            f"And {' and '.join(filter(None, more))}." if any(more) else "",
            f"No longer in the folder: {gone} of {len(board.rows)}." if gone else "",
        ]
        if any(beside):
            yield Text(" ".join(filter(None, beside)), style="dim")
        yield from remarks(sheet)

    def _what_is_done(self, num_waiting: int) -> str:
        if self._doing:
            return self._doing + (f"; {num_waiting} waiting" if num_waiting else "")
        return f"{num_waiting} not complete yet" if num_waiting else "nothing to do"

    def _status(self, text: str) -> Text:
        line = f"watching {printable(str(self._folder))}: {text}"
        return Text(line, style="dim", no_wrap=True, overflow="ellipsis")


def _how_far(progress: CandidateProgress, seconds: float) -> str:
    """`seconds` have passed since its evaluation began."""
    if not progress.total:
        return ""
    share = progress.done / progress.total
    left = f", {seconds / share - seconds:.0f} s left" if share > 0 and seconds > 1 else ""
    return f", {share:.0%}{left}"


def _counted(count: int, what: str) -> str:
    return f"{count} more {what}" if count > 0 else ""


@contextmanager
def open_live_table(folder: Path) -> Iterator[LiveTable]:
    """A table on standard output, which is a terminal; its rows stay there."""
    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        table = LiveTable(live, folder)
        try:
            yield table
        finally:
            table.end()
