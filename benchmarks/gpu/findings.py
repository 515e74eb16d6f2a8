"""What the steps of the campaign find: rows of its table, each written as a line of JSON as soon as it is known."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

NEEDS_GPU = "needs a GPU"


@dataclass(frozen=True)
class Row:
    """One line of the table, as a step found it."""

    name: str
    value: str
    """In words; empty when nothing was measured."""
    numbers: dict[str, float] = field(default_factory=dict)
    """The same for programs, each with its unit in its name."""
    holds: bool | None = None
    """Whether it meets the goal that the plan has for this row; None where there is none."""
    note: str = ""
    missing: str = ""
    """Why nothing was measured."""


class Findings:
    """The rows of one step, in a file that survives the step's process."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def add(
        self, name: str, value: str, holds: bool | None = None, *, note: str = "", **numbers: float
    ) -> None:
        """A row that was measured."""
        self._write({"row": asdict(Row(name, value, numbers, holds, note))})

    def missing(self, name: str, reason: str) -> None:
        """A row that cannot be measured here."""
        self._write({"row": asdict(Row(name, "", missing=reason))})

    def error(self, error: BaseException) -> None:
        """Why the step ends before its time."""
        lines = str(error).strip().splitlines()
        text = " ... ".join(dict.fromkeys((lines[0][:200], lines[-1][:300]))) if lines else ""
        self._write({"error": f"{type(error).__name__}: {text}"})

    def _write(self, entry: dict[str, object]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def read(path: Path) -> tuple[list[Row], str]:
    """The rows of a step, and why it ended before its time (or "")."""
    rows, error = [], ""
    for entry in _entries(path):
        if "error" in entry:
            error = entry["error"]
        else:
            rows.append(Row(**entry["row"]))
    return rows, error


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:  # the process was killed while it wrote
                return
