"""Progress bars on stderr, for people; where stderr is no terminal, nothing is written."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TransferSpeedColumn,
)
from rich.text import Text

_BAR_WIDTH = 20
"""All columns together fit into a terminal of 80."""


class _TimeLeft(ProgressColumn):
    """The time left, which says that it is that; empty where it is not known."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        seconds = None if task.finished else task.time_remaining
        return Text(
            "" if seconds is None else f"{timedelta(seconds=int(seconds))} left", style="progress.remaining"
        )


@contextmanager
def progress_bars(*last: ProgressColumn) -> Iterator[Progress | None]:
    """Progress bars on stderr with these columns and the time, while inside; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    name, bar = TextColumn("{task.description}", markup=False), BarColumn(_BAR_WIDTH)
    columns = (name, bar, *last, TimeElapsedColumn(), _TimeLeft())
    # What is printed meanwhile stands above the bars where it goes to the terminal too; rich must not touch what goes
    # to a file or a pipe.
    is_shown = sys.stdout is not None and sys.stdout.isatty()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, redirect_stdout=is_shown) as bars:
        yield bars


@contextmanager
def byte_bar(name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar of bytes (done, total) on stderr, while inside; nothing where stderr is no terminal."""
    with progress_bars(DownloadColumn(), TransferSpeedColumn()) as bars:
        if bars is None:
            yield lambda _done, _total: None
            return
        task = bars.add_task(name, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


@contextmanager
def item_bar(name: str, total: int, waits_for: str) -> Iterator[Callable[[float], None]]:
    """A bar of items done, in whole or in part, on stderr, while inside; nothing where stderr is no terminal.

    `waits_for` is shown until the first is done in part.
    """
    with progress_bars(MofNCompleteColumn(), TextColumn("{task.fields[waits_for]}")) as bars:
        if bars is None:
            yield lambda _done: None
            return
        task = bars.add_task(name, total=total, waits_for=waits_for)
        yield lambda done: bars.update(task, completed=done, waits_for="")
