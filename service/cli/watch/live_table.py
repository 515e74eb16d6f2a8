"""The leaderboard on a terminal: best first, what is done now above it, what failed below it."""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

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

    def __init__(self, live: Live, folder_name: str) -> None:
        self._live = live
        self._folder_name = printable(folder_name)
        self._doing = ""
        self._drawn: tuple[object, ...] = ()

    @contextmanager
    def scoring(self, question: Question) -> Iterator[OnProgress]:
        """Say how far the candidate has come."""
        name = printable(question.candidates[0].name)
        began: float | None = None

        def on_progress(progress: CandidateProgress) -> None:
            nonlocal began
            if progress.phase == "evaluating" and began is None:
                began = time.monotonic()
            seconds = 0.0 if began is None else time.monotonic() - began
            self._doing = f"{name}: {progress.phase}{_how_far(progress, seconds)}"

        self._doing = f"{name}: waiting"
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
            self._live.update(Group(*self._lines(board, folder)), refresh=True)

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
        yield self._status(folder)
        console = self._live.console
        max_rows = max(_MIN_ROWS, console.size.height - _LINES_AROUND_THE_TABLE)
        sheet = board.sheet(max_rows, _MAX_FAILED)
        if sheet.winner is not None:
            table, hidden = fitting_table(sheet, console)
            yield table
            if hidden is not None:
                yield hidden
        more = [
            _more(len(board.ranked) - max_rows, "more with a higher loss"),
            _more(len(board.failed) - _MAX_FAILED, "more without a loss"),
            _more(
                sum(row.path not in folder.present for row in board.rows), "of all no longer in the folder"
            ),
        ]
        if any(more):
            yield Text(f"And {', '.join(filter(None, more))}.", style="dim")
        yield from remarks(sheet)

    def _status(self, folder: CheckpointFolder) -> Text:
        waiting = len(folder.waiting)
        parts = [f"watching {self._folder_name}", self._doing or ("" if waiting else "nothing to do")]
        parts.append(f"{waiting} not complete or waiting" if waiting else "")
        return Text("; ".join(filter(None, parts)), style="dim")


def _how_far(progress: CandidateProgress, seconds: float) -> str:
    """`seconds` have passed since its evaluation began."""
    if not progress.total:
        return ""
    share = progress.done / progress.total
    left = f", {seconds / share - seconds:.0f} s left" if share > 0 and seconds > 1 else ""
    return f", {share:.0%}{left}"


def _more(count: int, what: str) -> str:
    return f"{count} {what}" if count > 0 else ""


@contextmanager
def open_live_table(folder_name: str) -> Iterator[LiveTable]:
    """A table on standard output, which is a terminal; its last state stays there."""
    with Live(console=Console(highlight=False), auto_refresh=False) as live:
        table = LiveTable(live, folder_name)
        live.update(Text("starting", style="dim"), refresh=True)
        yield table
