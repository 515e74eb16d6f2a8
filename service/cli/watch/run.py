"""What `soma-eval watch` does: from the flags to rows as they come, a report and an exit code."""

import asyncio
import contextlib
import os
import shlex
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from service.cli.architecture_flags import architecture_flags
from service.cli.hook_command import run_hook
from service.cli.output_file import refuse_unsafe_output
from service.cli.printable import printable
from service.cli.score.held_out import FoundData, find_data
from service.cli.score.question import Question, parse_seeds
from service.cli.score.report import MORE_COLOURS, Origin, is_report, render_report, write_report
from service.cli.score.run import exit_code
from service.cli.score.score_sheet import OnProgress, ScoreSheet
from service.cli.score.table import print_sheet
from service.cli.standard_streams import complain, write_out
from service.cli.starting import what_is_awaited
from service.cli.urls import refuse_far_service
from service.cli.usage import BadUsage
from service.cli.watch.board_file import BoardFile
from service.cli.watch.checkpoint_folder import ENDING
from service.cli.watch.display import Display, JsonLines, NothingYet, TextLines, json_line
from service.cli.watch.leaderboard import Leaderboard
from service.cli.watch.live_table import LiveTable, open_live_table
from service.cli.watch.training_curve import training_curve
from service.cli.watch.watching import RunHook, Score, Watch
from service.config import Settings
from service.log import configure_log
from service.scoring.served_architecture import architecture_of
from workers.architectures import CURRENT_VERSION


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What the command line asks for, beside the settings."""

    folder: Path
    data: str
    seed: int
    seeds: int
    once: bool
    json: bool
    on_best: str | None
    report: Path | None
    url: str | None
    api_key: str | None
    no_cache: bool


def run_watch(options: WatchOptions, settings: Settings) -> int:
    """Returns the exit code of `--once`; else it ends by an exception alone.

    Raises BadUsage, CommandFailed, ScoringError, WorkerError or OSError; KeyboardInterrupt on Ctrl-C.
    """
    configure_log("console", "warning")
    _check(options)
    with find_data(options.data) as found:
        if options.report is not None:
            inputs = [data.path for data in found.files]
            refuse_unsafe_output(options.report, "--report", inputs, is_report, "a page of `score --report`")
        question = _question(options, found)
        with _open_display(options) as display:
            _say_what_is_awaited(display, options, settings)
            board = asyncio.run(_watch(question, options, settings, display))
        if sys.stdout is not None:
            _print_at_the_end(board, options)
    return exit_code(board.sheet())


def _check(options: WatchOptions) -> None:
    folder = options.folder
    if not os.access(folder, os.R_OK | os.X_OK):
        raise BadUsage(f"{folder}: this folder may not be read")
    if options.url is not None:
        refuse_far_service(options.url, "watch the folder on that machine")
    if sys.stdout is None and options.on_best is None and options.report is None:
        raise BadUsage("standard output is closed, so no result would be seen: open it, or give --report")


def _question(options: WatchOptions, found: FoundData) -> Question:
    return Question(
        candidates=(),
        data=found.files,
        seeds=parse_seeds(options.seed, options.seeds),
        checksums=options.report is not None,
        num_skipped=found.num_skipped,
        compute_anew=options.no_cache,
    )


@contextmanager
def _open_display(options: WatchOptions) -> Iterator[Display]:
    if options.once or sys.stdout is None:
        yield NothingYet()
    elif not options.json and sys.stdout.isatty():
        with open_live_table(options.folder) as table:
            yield table
    else:
        yield JsonLines() if options.json else TextLines()


def _say_what_is_awaited(display: Display, options: WatchOptions, settings: Settings) -> None:
    awaited = what_is_awaited(settings, options.url)
    if isinstance(display, LiveTable):
        display.start(awaited)
    else:
        complain(f"{awaited}.")


async def _watch(
    question: Question, options: WatchOptions, settings: Settings, display: Display
) -> Leaderboard:
    async with _open_scoring(options, settings) as score:
        watch = Watch(
            question,
            options.folder,
            score,
            display,
            run_hook=None if options.on_best is None else _hook(options.on_best, display),
            on_change=_on_change(question, options, settings),
        )
        await watch.run(once=options.once)
    return watch.board


@asynccontextmanager
async def _open_scoring(options: WatchOptions, settings: Settings) -> AsyncIterator[Score]:
    """With workers that stay until the end, or with a service."""
    if options.url is None:
        from service.cli.score.local import open_workers  # takes longer than all else that is imported

        async with open_workers(settings) as workers:
            yield workers.score
        return
    from service.cli.score.remote import score_remotely

    url, api_key = options.url, options.api_key

    async def score(question: Question, on_progress: OnProgress) -> ScoreSheet:
        return await score_remotely(question, url, api_key, on_progress)

    yield score


def _hook(command: str, display: Display) -> RunHook:
    """The command's output goes to stderr; over a table that is drawn, it is shown when the command has ended."""

    async def run(line: str) -> None:
        with _hook_output(display) as output:
            try:
                code = await run_hook(command, line, output)
            except OSError as error:
                complain(f"--on-best could not be run: {error.strerror}")
                return
        if code:
            complain(f"--on-best ended with exit code {code}")

    return run


def _hook_output(display: Display) -> AbstractContextManager[int]:
    if isinstance(display, LiveTable):
        return display.hook_output()
    return contextlib.nullcontext(sys.__stderr__.fileno() if sys.__stderr__ is not None else 2)


def _on_change(
    question: Question, options: WatchOptions, settings: Settings
) -> Callable[[Leaderboard], None]:
    """Keeps the report up to date, and what a service's status page shows."""
    writers = [_board_writer(BoardFile(settings.data_dir, options.folder, question), options, settings)]
    if options.report is not None:
        writers.append(_report_writer(options, options.report, settings))

    def on_change(board: Leaderboard) -> None:
        for write in writers:
            write(board)

    return on_change


def _board_writer(
    file: BoardFile, options: WatchOptions, settings: Settings
) -> Callable[[Leaderboard], None]:
    """A watch goes on without the file; one that leaves all to a service makes no data folder for it."""
    has_complained = False

    def write(board: Leaderboard) -> None:
        nonlocal has_complained
        if options.url is not None and not settings.data_dir.is_dir():
            return
        try:
            file.write(board)
        except OSError as error:
            if not has_complained:
                complain(f"the status page will not show this: {error.strerror or error}")
            has_complained = True

    return write


def _report_writer(options: WatchOptions, path: Path, settings: Settings) -> Callable[[Leaderboard], None]:
    def write(board: Leaderboard) -> None:
        origin = Origin(
            datetime.now(UTC),
            _command_line(options, settings),
            CURRENT_VERSION,
            architecture_of(settings).name,
        )
        write_report(render_report(board.sheet(), origin, training_curve(board.rows, MORE_COLOURS)), path)

    return write


def _command_line(options: WatchOptions, settings: Settings) -> str:
    """A command that gives these numbers again; neither a URL nor a key is in it."""
    parts = ["soma-eval", "watch", str(options.folder), "--data", options.data]
    parts += ["--seed", str(options.seed), "--seeds", str(options.seeds), "--once"]
    parts += architecture_flags(settings)
    return shlex.join(parts)


def _print_at_the_end(board: Leaderboard, options: WatchOptions) -> None:
    if options.json:
        write_out("".join(json_line(row, board) for row in (*board.ranked, *board.failed)))
        return
    if not board.rows:
        write_out(f"There is no checkpoint (*{ENDING}) in {printable(str(options.folder))}.\n")
    else:
        print_sheet(board.sheet())
    if options.report is not None and board.rows:
        write_out(f"The report is in {printable(str(options.report))}.\n")
