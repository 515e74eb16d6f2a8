"""What `soma-eval screen` does: from the flags to lines of JSON and an exit code."""

import asyncio
import json
import sys
from collections.abc import AsyncIterable
from contextlib import aclosing
from pathlib import Path
from typing import Any

from rich.progress import TextColumn, TimeRemainingColumn

from service.cli.exit_codes import ExitCode
from service.cli.progress_bars import progress_bars
from service.cli.remedies import remedy
from service.cli.screen.lines import last_line
from service.cli.screen.local import OnLine, screen_locally
from service.cli.screen.on_hit import HitCommand
from service.cli.screen.pieces import find_pieces, read_pieces
from service.cli.screen.question import Question, read_question
from service.cli.standard_streams import complain, write_out
from service.cli.usage import BadUsage
from service.config import Settings
from service.errors import InvalidRequest, ScoringError
from service.scoring.screen import Piece, ScreenSummary


def run_screen(
    *,
    models: Path,
    targets: Path | None,
    data: str,
    seed: int,
    on_hit: str | None,
    url: str | None,
    api_key: str | None,
    settings: Settings,
) -> int:
    """Returns the exit code. Raises BadUsage, WorkerError or OSError."""
    if sys.stdout is None:
        raise BadUsage("standard output is closed, so no result would be seen: open it")
    question = read_question(models, targets, seed)
    source = find_pieces(data)
    command = None if on_hit is None else HitCommand(on_hit)
    summary, num_good = ScreenSummary(), 0

    with progress_bars(TextColumn("{task.fields[found]}"), TimeRemainingColumn()) as bars:
        task = None if bars is None else bars.add_task("screening", total=source.total_bytes, found="")

        def on_read(num_bytes: int) -> None:
            if bars is not None and task is not None:
                bars.update(task, advance=num_bytes)

        async def on_line(line: dict[str, Any]) -> None:
            nonlocal num_good
            text = json.dumps(line, allow_nan=False) + "\n"
            await asyncio.to_thread(write_out, text)  # which waits for a reader that is slow
            hits = sum(target["hit"] for target in line["targets"])
            num_good += any(model["loss"] is not None for model in line["models"])
            summary.pieces += 1
            summary.failed += line["error"] is not None
            summary.hits += hits
            summary.pieces_with_hits += hits > 0
            if bars is not None and task is not None:
                bars.update(task, found=f"{summary.pieces:,} pieces, {summary.hits:,} hits")
            if hits and command is not None:
                await command.run(text)

        async def run() -> ScreenSummary:
            async with aclosing(read_pieces(source, settings.max_data_bytes, on_read)) as pieces:
                return await _screen(question, pieces, settings, url, api_key, on_line)

        try:
            summary.seconds = asyncio.run(run()).seconds
        except InvalidRequest:
            raise
        except ScoringError as error:
            write_out(json.dumps(last_line(summary, error)) + "\n")
            complain(f"{error.detail}. {remedy(error)}")
            return ExitCode.MACHINE
    write_out(json.dumps(last_line(summary)) + "\n")
    return ExitCode.GOOD if num_good or not summary.pieces else ExitCode.AT_FAULT


async def _screen(
    question: Question,
    pieces: AsyncIterable[Piece],
    settings: Settings,
    url: str | None,
    api_key: str | None,
    on_line: OnLine,
) -> ScreenSummary:
    if url is None:
        return await screen_locally(question, pieces, settings, on_line)
    from service.cli.screen.remote import screen_remotely

    return await screen_remotely(question, pieces, url, api_key, on_line)
