"""A score sheet on the terminal: the table, best first, and the remarks below it."""

import sys
from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from service.cli.printable import printable
from service.cli.score.remarks import remarks, title_of
from service.cli.score.score_sheet import Outcome, ScoreSheet
from service.cli.standard_streams import write_out

_WIDTH_IN_A_PIPE = 200
_DROPPED_FIRST = ("seconds", "SIGReg", "bits/byte", "cross-entropy", "± spread")
"""Columns that a narrow terminal goes without."""


def print_sheet(sheet: ScoreSheet) -> None:
    """The table, best first, and what else there is to say. Raises OSError."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(width=None if is_terminal else _WIDTH_IN_A_PIPE, highlight=False)
    with console.capture() as captured:
        if sheet.winner is not None:
            table, hidden = fitting_table(sheet, console)
            console.print(table)
            if hidden is not None:
                console.print(hidden)
        for line in remarks(sheet):
            console.print(line, soft_wrap=not is_terminal)
    write_out(captured.get())


def fitting_table(sheet: ScoreSheet, console: Console) -> tuple[Table, Text | None]:
    """The table without the columns a narrow terminal has no room for, and a line that names them."""
    unbounded = console.options.update(max_width=1000)

    def width(dropped: Sequence[str]) -> int:
        return console.measure(_table(sheet, dropped), options=unbounded).minimum

    candidates = [_DROPPED_FIRST[:count] for count in range(len(_DROPPED_FIRST) + 1)]
    dropped = next((names for names in candidates if width(names) <= console.width), _DROPPED_FIRST)
    hidden = [name for name in dropped if name in _columns(sheet)]
    if not hidden:
        return _table(sheet, ()), None
    line = f"Not shown: {', '.join(hidden)}. A terminal of {width(())} columns shows them."
    return _table(sheet, dropped), Text(line, style="dim")


def _columns(sheet: ScoreSheet) -> list[str]:
    """Those of any row: a model whose embedding is zero has no distance."""
    rows = [_numbers(sheet.outcomes[index], 0.0, sheet.question.num_runs) for index in sheet.best_first()]
    return max(map(list, rows), key=len)


def _table(sheet: ScoreSheet, dropped: Sequence[str]) -> Table:
    num_runs = sheet.question.num_runs
    table = Table(title=title_of(sheet.question), title_justify="left", title_style="dim", box=SIMPLE_HEAD)
    table.add_column("#", justify="right")
    table.add_column("weights", overflow="fold", min_width=16)
    order = sheet.best_first()
    best = sheet.outcomes[order[0]].loss or 0.0
    rows = [_numbers(sheet.outcomes[index], best, num_runs) for index in order]
    names = [name for name in _columns(sheet) if name not in dropped]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for rank, (index, row) in enumerate(zip(order, rows, strict=True), start=1):
        outcome = sheet.outcomes[index]
        best_style = "bold" if sheet.is_near_tie else "bold green"
        style = best_style if rank == 1 else ("yellow" if outcome.attends_to_future else "")
        weights = Text(printable(outcome.candidate.name) + (" (live)" if outcome.candidate.is_live else ""))
        table.add_row(str(rank), weights, *(row.get(name, "-") for name in names), style=style)
    return table


def _numbers(outcome: Outcome, best: float, num_runs: int) -> dict[str, str]:
    """The cells of a row, by column."""
    loss = outcome.loss or 0.0
    cells = {"loss" if num_runs == 1 else "mean loss": _number(loss)}
    if num_runs > 1:
        cells["± spread"] = _number(outcome.loss_spread)
    cells["to best"] = f"+{_number(loss - best)}" if loss != best else "best"
    cells["cross-entropy"] = _number(outcome.mean(lambda run: run.cross_entropy))
    cells["SIGReg"] = f"{outcome.mean(lambda run: run.sig_reg):.4f}"
    cells["bits/byte"] = f"{outcome.mean(lambda run: run.bits_per_byte):.4f}"
    if outcome.distance is not None:
        cells["distance"] = f"{outcome.distance:.6f}"
    cells["seconds"] = f"{outcome.seconds:.1f}"
    return cells


def _number(value: float) -> str:
    return f"{value:.6f}" if abs(value) < 1e6 else f"{value:.6g}"
