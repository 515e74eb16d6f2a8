"""The table and the JSON of a campaign: every row with its goal, also those that were not measured."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.markup import escape
from rich.table import Table

from benchmarks.gpu.campaign import StepResult
from benchmarks.gpu.findings import Row
from benchmarks.gpu.plan import Goal

WRONG, INCOMPLETE = 1, 3
"""Exit codes: something that must hold does not; nothing is wrong, but a step failed."""

Verdict = Literal["pass", "fail", "measured", "not measured"]
_STYLE: dict[Verdict, str] = {"pass": "green", "fail": "bold red", "measured": "", "not measured": "yellow"}


@dataclass(frozen=True)
class Line:
    """A row of the table with its goal."""

    part: str
    step: str
    row: Row
    goal: Goal | None

    @property
    def verdict(self) -> Verdict:
        if self.row.missing:
            return "not measured"
        if self.row.holds is None:
            return "measured"
        return "pass" if self.row.holds else "fail"

    @property
    def is_wrong(self) -> bool:
        """Whether it fails though it must hold: speed alone may fall short."""
        return self.verdict == "fail" and (self.goal is None or self.goal.must_hold)


def lines_of(results: Sequence[StepResult]) -> list[Line]:
    """Every row of every step, and for each goal without a row why there is none."""
    return [line for result in results for line in _lines(result)]


def _lines(result: StepResult) -> Iterator[Line]:
    step = result.step
    goals = {goal.row: goal for goal in step.goals}
    for row in result.rows:
        yield Line(step.part, step.name, row, goals.pop(row.name, None))
    reason = result.reason or "the step gave no such row"
    for goal in goals.values():
        yield Line(step.part, step.name, Row(goal.row, "", missing=reason), goal)
    if result.reason and not step.goals:
        yield Line(step.part, step.name, Row(step.name, "", missing=reason), None)


def exit_code(results: Sequence[StepResult]) -> int:
    """0, WRONG or INCOMPLETE. What has no GPU or no time is neither."""
    if any(line.is_wrong for line in lines_of(results)):
        return WRONG
    return INCOMPLETE if any(result.outcome == "failed" for result in results) else 0


def table(results: Sequence[StepResult], title: str) -> Table:
    found = Table(title=title)
    for heading in ("", "result", "found", "goal"):
        found.add_column(heading, overflow="fold")
    part = ""
    for line in lines_of(results):
        if line.part != part:
            part = line.part
            found.add_section()
            found.add_row(f"[bold]{part}")
        style = _STYLE[line.verdict]
        verdict = f"[{style}]{line.verdict}[/]" if style else line.verdict
        found.add_row(*(f"  {escape(line.row.name)}", verdict, escape(_found(line.row)), _goal(line)))
    return found


def _found(row: Row) -> str:
    return row.missing or (f"{row.value} ({row.note})" if row.note else row.value)


def _goal(line: Line) -> str:
    return escape(line.goal.text) if line.goal else ""


def document(results: Sequence[StepResult], **facts: object) -> dict[str, Any]:
    """The same as one JSON object: `facts`, steps, rows, exit code."""
    return {
        **facts,
        "exit_code": exit_code(results),
        "steps": [
            {
                "part": result.step.part,
                "name": result.step.name,
                "outcome": result.outcome,
                "reason": result.reason,
                "seconds": round(result.seconds, 2),
            }
            for result in results
        ],
        "rows": [
            {
                "part": line.part,
                "step": line.step,
                "verdict": line.verdict,
                "goal": line.goal.text if line.goal else None,
                "must_hold": bool(line.goal and line.goal.must_hold),
                **asdict(line.row),
            }
            for line in lines_of(results)
        ],
    }
