"""How a watch shows what comes out: a line for each checkpoint, or nothing until the end."""

import json
from contextlib import AbstractContextManager
from typing import Protocol

from service.cli.printable import printable
from service.cli.score.candidate_bars import candidate_bars
from service.cli.score.question import Question
from service.cli.score.remarks import reasons
from service.cli.score.score_sheet import OnProgress
from service.cli.standard_streams import write_out
from service.cli.watch.checkpoint_folder import CheckpointFolder
from service.cli.watch.leaderboard import Leaderboard, Row


class Display(Protocol):
    """What is told of a watch."""

    def scoring(self, question: Question) -> AbstractContextManager[OnProgress]:
        """Within the block the one candidate of the question is scored."""

    def scored(self, row: Row, board: Leaderboard) -> None:
        """The row is new on the board. Raises CommandFailed where nobody reads it."""

    def refresh(self, board: Leaderboard, folder: CheckpointFolder) -> None:
        """The folder has been looked at; called many times a second."""


class NothingYet:
    """Shows progress on stderr, and no row: all of them are printed at the end."""

    def scoring(self, question: Question) -> AbstractContextManager[OnProgress]:
        """A bar, where stderr is a terminal."""
        return candidate_bars(question, "waiting")

    def scored(self, row: Row, board: Leaderboard) -> None:
        """Nothing."""

    def refresh(self, board: Leaderboard, folder: CheckpointFolder) -> None:
        """Nothing."""


class JsonLines(NothingYet):
    """An object for each checkpoint, as soon as it is known."""

    def scored(self, row: Row, board: Leaderboard) -> None:
        """Its line."""
        write_out(json_line(row, board))


class TextLines(NothingYet):
    """A sentence for each checkpoint: a terminal that is none shows no table that changes."""

    def scored(self, row: Row, board: Leaderboard) -> None:
        """Its line."""
        write_out(text_lines(row, board))


def json_line(row: Row, board: Leaderboard) -> str:
    """A row for scripts."""
    return json.dumps(board.json(row), allow_nan=False) + "\n"


def text_lines(row: Row, board: Leaderboard) -> str:
    """A row for people, or why there is no loss."""
    outcome = row.outcome
    if outcome.error is not None:
        return "".join(f"{line.plain}\n" for line in reasons(outcome))
    ranked = board.ranked
    spread = f" ± {outcome.loss_spread:.6f}" if len(outcome.runs) > 1 else ""
    kept = ", computed earlier" if outcome.result_cached else ""
    leak = ", but it sees the bytes it predicts" if outcome.attends_to_future else ""
    place = f"{ranked.index(row) + 1} of {len(ranked)}"
    return (
        f"{printable(outcome.candidate.name)}: loss {outcome.loss:.6f}{spread}, place {place}{kept}{leak}\n"
    )
