"""A progress bar for each candidate."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, TaskID, TextColumn

from service.cli.progress_bars import progress_bars
from service.cli.score.names import distinct_names
from service.cli.score.question import Question
from service.cli.score.score_sheet import CandidateProgress, OnProgress

_NAME_WIDTH = 24


@contextmanager
def candidate_bars(question: Question, first: str) -> Iterator[OnProgress]:
    """A bar for each candidate on stderr, while inside, whose first phase is `first`; where stderr is no terminal,
    nothing."""
    with progress_bars(TextColumn("{task.fields[phase]}")) as bars:
        if bars is None:
            yield lambda _: None
            return
        names = distinct_names(_without_folders(question), _NAME_WIDTH)
        tasks = [bars.add_task(name, total=None, phase=first) for name in names]
        yield lambda progress: _show(bars, tasks[progress.index], progress)


def _without_folders(question: Question) -> list[str]:
    """The names, without the folders unless these are what tells two of them apart."""
    names = [candidate.name for candidate in question.candidates]
    short = [name.rpartition("/")[2] or name for name in names]
    return short if len(set(short)) == len(set(names)) else names


def _show(bars: Progress, task: TaskID, progress: CandidateProgress) -> None:
    if progress.phase in ("done", "failed"):
        bars.update(task, total=1, completed=1, phase=progress.phase)
    else:
        total = progress.total if progress.phase in ("downloading", "evaluating") else None
        bars.update(task, total=total, completed=progress.done, phase=progress.phase)
