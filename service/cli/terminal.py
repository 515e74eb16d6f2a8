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

from service.cli.check.diagnosis import Finding
from service.cli.printable import printable
from service.cli.question import Question
from service.cli.remedies import remedy
from service.cli.score.names import distinct_names
from service.cli.score.score_sheet import CandidateProgress, OnProgress, Outcome, ScoreSheet, all_errors

_WIDTH_IN_A_PIPE = 200
_NAME_WIDTH = 32
_DROPPED_FIRST = ("seconds", "SIGReg", "bits/byte", "cross-entropy", "± spread")
NETWORK_MAX_DATA_BYTES = 1 << 20
MAX_FINDINGS_SHOWN = 12
_MAX_REASONS = 3


@contextmanager
def candidate_bars(question: Question) -> Iterator[OnProgress]:
    """A bar for each candidate on stderr, while inside; nothing where stderr is no terminal."""
    with _bars(TextColumn("{task.fields[phase]}")) as bars:
        if bars is None:
            yield lambda _: None
            return
        names = distinct_names([candidate.name for candidate in question.candidates], _NAME_WIDTH)
        tasks = [bars.add_task(name, total=None, phase="starting a worker") for name in names]
        yield lambda progress: _show(bars, tasks[progress.index], progress)


@contextmanager
def byte_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar of bytes (done, total) on stderr, while inside; nothing where stderr is no terminal."""
    with _bars(DownloadColumn(), TransferSpeedColumn()) as bars:
        if bars is None:
            yield lambda _done, _total: None
            return
        (short,) = distinct_names([name], _NAME_WIDTH)
        task = bars.add_task(short, total=None)
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
    """The table, best first, and what else there is to say. Raises OSError."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(width=None if is_terminal else _WIDTH_IN_A_PIPE, highlight=False)
    with console.capture() as captured:
        if sheet.winner is not None:
            table, hidden = _fitting_table(sheet, console)
            console.print(table)
            if hidden is not None:
                console.print(hidden)
        for line in remarks(sheet):
            console.print(line, soft_wrap=not is_terminal)
    write_out(captured.get())


def remarks(sheet: ScoreSheet) -> Iterator[Text]:
    """What the numbers alone do not say."""
    for outcome in sheet.outcomes:
        if outcome.error is not None:
            yield from _reasons(outcome)
        elif outcome.attends_to_future:
            yield _warning(
                f"{printable(outcome.candidate.name)} sees the bytes it predicts: masked positions won weight "
                "in its attention (attends_to_future). The network computes this loss; validators will look twice."
            )
    yield from _remarks_on_the_winner(sheet)
    yield from _remarks_on_the_question(sheet)


def _reasons(outcome: Outcome) -> Iterator[Text]:
    assert outcome.error is not None
    name = printable(outcome.candidate.name)
    if not outcome.findings:
        text = f"✗ {name}: {printable(outcome.error.detail)}. {remedy(outcome.error)}"
        yield Text(text, style="red")
    for finding in outcome.findings[:_MAX_REASONS]:
        yield Text(f"✗ {name}: {printable(finding.detail)} → {printable(finding.remedy)}", style="red")
    if len(outcome.findings) > _MAX_REASONS:
        more = len(outcome.findings) - _MAX_REASONS
        yield Text(f"✗ {name}: and {more} more: `soma-eval check` lists them.", style="red")


def _remarks_on_the_winner(sheet: ScoreSheet) -> Iterator[Text]:
    num_failed = len(all_errors(sheet.outcomes))
    if sheet.is_incomplete:
        yield _warning(
            "The comparison is incomplete: a candidate above was not evaluated, for reasons that say nothing of it."
        )
    if sheet.winner is not None and sheet.margin is None and num_failed:
        yield _warning("Only one candidate has a loss: it is compared with nothing.")
    tied = sheet.near_ties()
    if tied:
        count = "Both" if len(tied) == 2 else f"All {len(tied)}"
        yield _warning(
            f"A near tie: {_listed([sheet.outcomes[i].candidate.name for i in tied])}. {count} are within the 1 % "
            f"or 0.01 that validators may differ by (the second is {sheet.margin:.6f} behind), so any of them "
            "could win. More held-out data may tell them apart."
        )
    if sheet.margin is not None and sheet.question.num_runs > 1:
        ahead = f"The best is ahead of all others in {sheet.num_wins} of {sheet.question.num_runs} runs"
        always = sheet.num_wins == sheet.question.num_runs
        yield Text(f"{ahead}.") if always else _warning(f"{ahead}: who wins depends on the file or the seed.")


def _remarks_on_the_question(sheet: ScoreSheet) -> Iterator[Text]:
    question = sheet.question
    if len(question.data) > 1:
        yield Text("Every number is the mean over the files, each counting the same whatever its size.")
    if question.num_skipped:
        yield Text(f"Left out of the folder: {question.num_skipped} hidden, backup or empty files.")
    if any(data.size > NETWORK_MAX_DATA_BYTES for data in question.data):
        yield _warning("The network evaluates at most 1 MiB at once; this data is larger.")
    precisions = {run.precision for outcome in sheet.outcomes for run in outcome.runs} - {"", "float32"}
    if precisions:
        yield _warning(f"Computed in {', '.join(sorted(precisions))}: the network computes in float32.")


def _warning(text: str) -> Text:
    return Text(f"! {text}", style="yellow")


def _listed(names: Sequence[str]) -> str:
    shown = [printable(name) for name in names[:_MAX_REASONS]]
    more = [f"{len(names) - _MAX_REASONS} more"] if len(names) > _MAX_REASONS else []
    parts = shown + more
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _fitting_table(sheet: ScoreSheet, console: Console) -> tuple[Table, Text | None]:
    """The table without the columns a narrow terminal has no room for, and a line that names them."""
    unbounded = console.options.update(max_width=1000)

    def width(dropped: Sequence[str]) -> int:
        return console.measure(_table(sheet, dropped), options=unbounded).minimum

    candidates = [_DROPPED_FIRST[:count] for count in range(len(_DROPPED_FIRST) + 1)]
    dropped = next((names for names in candidates if width(names) <= console.width), _DROPPED_FIRST)
    hidden = [name for name in dropped if name in _columns(sheet)]
    if not hidden:
        return _table(sheet, ()), None
    line = (
        f"Not shown: {', '.join(hidden)}. A terminal of {width(())} columns shows them; --json has them all."
    )
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
        weights = Text(printable(outcome.candidate.name))
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
