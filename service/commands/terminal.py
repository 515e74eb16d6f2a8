"""What people see of a score sheet: progress bars on stderr, a table on stdout, remarks below it."""

import errno
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from service.commands.diagnosis import Finding
from service.commands.question import Question
from service.commands.remedies import remedy
from service.commands.score_sheet import CandidateProgress, OnProgress, Outcome, ScoreSheet

_WIDTH_IN_A_PIPE = 200
_DROPPED_FIRST = ("seconds", "SIGReg", "bits/byte", "cross-entropy", "± spread")
NETWORK_MAX_DATA_BYTES = 1 << 20
MAX_FINDINGS_SHOWN = 12


@contextmanager
def candidate_bars(question: Question) -> Iterator[OnProgress]:
    """A bar for each candidate on stderr, while inside; nothing where stderr is no terminal."""
    with _bars(TextColumn("{task.fields[phase]}")) as bars:
        if bars is None:
            yield lambda _: None
            return
        tasks = [
            bars.add_task(_short(candidate.name), total=None, phase="starting a worker")
            for candidate in question.candidates
        ]
        yield lambda progress: _show(bars, tasks[progress.index], progress)


@contextmanager
def byte_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar of bytes (done, total) on stderr, while inside; nothing where stderr is no terminal."""
    with _bars(DownloadColumn(), TransferSpeedColumn()) as bars:
        if bars is None:
            yield lambda _done, _total: None
            return
        task = bars.add_task(_short(name), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def finding_lines(findings: Sequence[Finding]) -> Iterator[str]:
    """A line for each: what is wrong, and what to do. Very many are cut short."""
    for finding in findings[:MAX_FINDINGS_SHOWN]:
        yield f"✗ {printable(finding.detail)} → {printable(finding.remedy)}"
    if len(findings) > MAX_FINDINGS_SHOWN:
        yield f"✗ and {len(findings) - MAX_FINDINGS_SHOWN} more: `soma-eval check --json` lists them all."


def write_out(text: str) -> None:
    """Write to standard output, and see it written. Raises OSError where that is closed, full or a broken pipe."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        if sys.stdout is not None:  # what is left in its buffer would fail once more when the process ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, f"standard output cannot be written ({error.strerror})") from error


def print_sheet(sheet: ScoreSheet) -> None:
    """The table, best first, and what else there is to say."""
    console = Console(width=None if sys.stdout.isatty() else _WIDTH_IN_A_PIPE, highlight=False)
    if sheet.winner is not None:
        console.print(_fitting_table(sheet, console))
    for line in remarks(sheet):
        console.print(line, soft_wrap=not sys.stdout.isatty())


def remarks(sheet: ScoreSheet) -> Iterator[Text]:
    """What the numbers alone do not say."""
    for outcome in sheet.outcomes:
        if outcome.error is not None:
            text = f"✗ {printable(outcome.candidate.name)}: {outcome.error.detail}. {remedy(outcome.error)}"
            yield Text(text, style="red")
        elif outcome.attends_to_future:
            yield Text(
                f"! {printable(outcome.candidate.name)} sees the bytes it predicts: masked positions won weight "
                "in its attention (attends_to_future). The network computes this loss; validators will look twice.",
                style="yellow",
            )
    if sheet.is_near_tie:
        yield Text(
            f"! A near tie: {sheet.margin:.6f} apart, and validators may differ by 1 % or 0.01. "
            "Either could win: more held-out data may tell them apart.",
            style="yellow",
        )
    if sheet.margin is not None and sheet.question.num_runs > 1:
        yield Text(f"The best is ahead in {sheet.num_wins} of {sheet.question.num_runs} runs.")
    if any(data.size > NETWORK_MAX_DATA_BYTES for data in sheet.question.data):
        yield Text("! The network evaluates at most 1 MiB at once; this data is larger.", style="yellow")


def printable(text: str) -> str:
    """A name with nothing in it that a terminal obeys."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _fitting_table(sheet: ScoreSheet, console: Console) -> Table:
    """The table without the columns a narrow terminal has no room for; --json has them all."""
    unbounded = console.options.update(max_width=1000)
    for num_dropped in range(len(_DROPPED_FIRST) + 1):
        table = _table(sheet, _DROPPED_FIRST[:num_dropped])
        if console.measure(table, options=unbounded).minimum <= console.width:
            break
    return table


def _table(sheet: ScoreSheet, dropped: Sequence[str]) -> Table:
    num_runs = sheet.question.num_runs
    table = Table(title=title_of(sheet.question), title_justify="left", title_style="dim", box=SIMPLE_HEAD)
    table.add_column("#", justify="right")
    table.add_column("weights", overflow="fold", min_width=16)
    order = sheet.best_first()
    best = sheet.outcomes[order[0]].loss or 0.0
    rows = [_numbers(sheet.outcomes[index], best, num_runs) for index in order]
    names = [name for name in rows[0] if name not in dropped]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for rank, (index, row) in enumerate(zip(order, rows, strict=True), start=1):
        outcome = sheet.outcomes[index]
        style = "bold green" if rank == 1 else ("yellow" if outcome.attends_to_future else "")
        weights = Text(printable(outcome.candidate.name))
        table.add_row(str(rank), weights, *(row[name] for name in names), style=style)
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


def title_of(question: Question) -> str:
    """What was scored, in one line."""
    size = sum(data.size for data in question.data)
    what = "standard input" if question.data[0].name == "-" else printable(question.data[0].name)
    files = what if len(question.data) == 1 else f"{len(question.data)} files"
    seeds = question.seeds
    drawn = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return f"{size:,} bytes of {files}, {drawn}; loss = cross-entropy + 0.02 SIGReg, lower is better"


@contextmanager
def _bars(*last: ProgressColumn) -> Iterator[Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *last, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield bars


def _show(bars: Progress, task: TaskID, progress: CandidateProgress) -> None:
    if progress.phase in ("done", "failed"):
        bars.update(task, total=1, completed=1, phase=progress.phase)
    else:
        total = progress.total if progress.phase in ("downloading", "evaluating") else None
        bars.update(task, total=total, completed=progress.done, phase=progress.phase)


def _short(name: str, width: int = 32) -> str:
    name = printable(name)
    return name if len(name) <= width else f"…{name[-width + 1 :]}"
