"""The checkpoints that have been scored, as one score sheet."""

from collections.abc import Set
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from service.cli.score.file_state import FileState
from service.cli.score.question import Candidate, Question
from service.cli.score.score_sheet import Outcome, ScoreSheet, error_json


@dataclass(frozen=True, slots=True)
class Row:
    """One checkpoint, scored or not for a reason."""

    path: Path
    state: FileState
    """When it was scored."""
    outcome: Outcome

    def is_same_file(self, other: "Row") -> bool:
        """Whether it has the same bytes, also under another name: renaming keeps all but the time of change."""
        return replace(self.state, ctime_ns=0) == replace(other.state, ctime_ns=0)


class Leaderboard:
    """One row for each checkpoint. A file that is gone keeps its row, unless it was renamed."""

    def __init__(self, question: Question, folder: Path) -> None:
        """`question` is what every checkpoint in the folder is asked; its candidates do not count."""
        self._question = question
        self._folder = folder
        self._rows: dict[Path, Row] = {}
        self._data_checksums: tuple[str, ...] = ()

    def add(self, row: Row, present: Set[Path], data_checksums: tuple[str, ...] = ()) -> None:
        """Add a row, in place of that of the same path, or of the path the file had before it was renamed."""
        renamed = [
            path for path, other in self._rows.items() if path not in present and row.is_same_file(other)
        ]
        for path in renamed:
            del self._rows[path]
        self._rows.pop(row.path, None)
        self._rows[row.path] = row
        self._data_checksums = data_checksums or self._data_checksums

    @property
    def rows(self) -> list[Row]:
        """All, the latest scored last."""
        return list(self._rows.values())

    @property
    def ranked(self) -> list[Row]:
        """Those with a loss, best first; of two with the same loss, the one that was scored first."""
        rows = [row for row in self.rows if row.outcome.error is None]
        return sorted(rows, key=lambda row: row.outcome.loss or 0.0)

    @property
    def failed(self) -> list[Row]:
        """Those without a loss, the latest first."""
        return [row for row in reversed(self.rows) if row.outcome.error is not None]

    def sheet(self, max_ranked: int | None = None, max_failed: int | None = None) -> ScoreSheet:
        """All rows, or so many, as the answer to one question, for people: names begin below the folder."""
        rows = (*self.ranked[:max_ranked], *self.failed[:max_failed])
        candidates = tuple(Candidate(str(row.path.relative_to(self._folder))) for row in rows)
        outcomes = tuple(
            replace(row.outcome, candidate=candidate) for row, candidate in zip(rows, candidates, strict=True)
        )
        return ScoreSheet(replace(self._question, candidates=candidates), outcomes, self._data_checksums)

    def json(self, row: Row) -> dict[str, Any]:
        """What `soma-eval watch --json` prints of a row."""
        outcome = row.outcome
        numbers: dict[str, Any] = dict.fromkeys(("loss", "loss_spread", "cross_entropy", "sig_reg", "rank"))
        if outcome.error is None:
            numbers = {
                "loss": outcome.loss,
                "loss_spread": outcome.loss_spread,
                "cross_entropy": outcome.mean(lambda run: run.cross_entropy),
                "sig_reg": outcome.mean(lambda run: run.sig_reg),
                "rank": self.ranked.index(row) + 1,
            }
        return {
            "weights": outcome.candidate.name,
            **numbers,
            "result_cached": outcome.result_cached,
            "error": error_json(outcome),
        }
