"""What `soma-eval screen` does: from the flags to lines of JSON and an exit code."""

import asyncio
import json
import sys
from collections.abc import AsyncIterable
from contextlib import aclosing, nullcontext
from pathlib import Path
from typing import Any

from rich.progress import Progress, TaskID, TextColumn

from service.cli.exit_codes import ExitCode
from service.cli.output_file import refuse_unsafe_output, write_whole
from service.cli.progress_bars import progress_bars
from service.cli.remedies import remedy
from service.cli.screen.lines import OnLine, last_line
from service.cli.screen.nearness import Nearness
from service.cli.screen.on_hit import HitCommand
from service.cli.screen.pieces import PieceSource, find_pieces, read_pieces
from service.cli.screen.question import Question, read_question, refuse_files
from service.cli.screen.report import is_report, render_report
from service.cli.standard_streams import complain, write_out, write_past_buffer
from service.cli.starting import say_what_is_awaited
from service.cli.usage import BadUsage
from service.config import Settings
from service.daemon_thread import run_in_daemon_thread
from service.errors import InvalidRequest, ScoringError
from service.scoring.screen import Piece, ScreenSummary


def run_screen(
    *,
    models: Path,
    targets: Path | None,
    data: str,
    seed: int,
    on_hit: str | None,
    report: Path | None,
    url: str | None,
    api_key: str | None,
    settings: Settings,
) -> int:
    """Returns the exit code. Raises BadUsage, WorkerError or OSError."""
    if sys.stdout is None:
        raise BadUsage("standard output is closed, so no result would be seen: open it")
    question = read_question(models, targets, seed)
    source = find_pieces(data)
    if url is not None:
        refuse_files(question)
    if report is not None:
        inputs = [path for path in (models, targets, Path(data)) if path is not None]
        refuse_unsafe_output(report, "--report", inputs, is_report, "a page of `screen --report`")
    is_shown = sys.stdout.isatty()  # the lines themselves are progress then, and leave no place for a bar
    say_what_is_awaited(settings, url, has_bar=not is_shown)
    with nullcontext() if is_shown else progress_bars(TextColumn("{task.fields[found]}")) as bars:
        command = None if on_hit is None else HitCommand(on_hit)
        output = _Output(question, source, command, bars, "waiting" if url else "starting a worker")

        async def run() -> ScreenSummary:
            async with aclosing(read_pieces(source, settings.max_data_bytes, output.on_read)) as pieces:
                return await _screen(question, pieces, settings, url, api_key, output.write)

        try:
            output.summary.seconds = asyncio.run(run()).seconds
        except InvalidRequest:
            raise
        except ScoringError as error:
            write_out(json.dumps(last_line(output.summary, error)) + "\n")
            complain(f"{error.detail}. {remedy(error)}")
            return ExitCode.MACHINE
    write_out(json.dumps(last_line(output.summary)) + "\n")
    if report is not None:
        write_whole(report, render_report(output.nearness, output.summary))
    return ExitCode.GOOD if output.num_good or not output.summary.pieces else ExitCode.AT_FAULT


class _Output:
    """Where lines go: standard output, the counts, the bar, and the command for hits."""

    def __init__(
        self,
        question: Question,
        source: PieceSource,
        command: HitCommand | None,
        bars: Progress | None,
        waits_for: str,
    ) -> None:
        """`waits_for` is shown until the first line."""
        self.summary = ScreenSummary()
        self.nearness = Nearness({target.id: target.distance_threshold for target in question.targets})
        self.num_good = 0
        """Pieces that have a loss."""
        self._num_read = 0
        self._read_bytes = 0
        self._command = command
        self._bars = bars
        self._task = TaskID(0)
        if bars is not None:
            self._task = bars.add_task("screening", total=source.total_bytes, found=waits_for)

    def on_read(self, num_bytes: int) -> None:
        """One more piece was read, of so many bytes."""
        self._num_read += 1
        self._read_bytes += num_bytes
        if self._bars is not None and self._num_read == 1:
            self._bars.update(self._task, found="evaluating")

    async def write(self, line: dict[str, Any]) -> None:
        """One line; waits for a reader that is slow, and for the command."""
        text = json.dumps(line, allow_nan=False) + "\n"
        await run_in_daemon_thread(lambda: write_past_buffer(text))
        hits = sum(target["hit"] for target in line["targets"])
        self.num_good += any(model["loss"] is not None for model in line["models"])
        self.summary.pieces += 1
        self.summary.failed += line["error"] is not None
        self.summary.hits += hits
        self.summary.pieces_with_hits += hits > 0
        self.nearness.add(line)
        if self._bars is not None:
            found = f"{_counted(self.summary.pieces, 'piece')}, {_counted(self.summary.hits, 'hit')}"
            done = self._read_bytes * self.summary.pieces / self._num_read
            self._bars.update(self._task, completed=done, found=found)
        if hits and self._command is not None:
            await self._command.run(text)


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


async def _screen(
    question: Question,
    pieces: AsyncIterable[Piece],
    settings: Settings,
    url: str | None,
    api_key: str | None,
    on_line: OnLine,
) -> ScreenSummary:
    if url is None:
        from service.cli.screen.local import screen_locally  # takes longer than all else that is imported

        return await screen_locally(question, pieces, settings, on_line)
    from service.cli.screen.remote import screen_remotely

    return await screen_remotely(question, pieces, url, api_key, on_line)
