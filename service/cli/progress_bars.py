"""Progress bars on stderr, for people; where stderr is no terminal, nothing is written."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


@contextmanager
def progress_bars(*last: ProgressColumn) -> Iterator[Progress | None]:
    """Progress bars on stderr that end with these columns, while inside; None where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), *last, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
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
def item_bar(name: str, total: int) -> Iterator[Callable[[float], None]]:
    """A bar of items done, in whole or in part, on stderr, while inside; nothing where stderr is no terminal."""
    with progress_bars(MofNCompleteColumn(), TimeRemainingColumn()) as bars:
        if bars is None:
            yield lambda _done: None
            return
        task = bars.add_task(name, total=total)
        yield lambda done: bars.update(task, completed=done)
