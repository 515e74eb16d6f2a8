"""`soma-eval score`: from the flags to a table, JSON or a page, and an exit code."""

import asyncio
import json as json_format
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.commands.local_scoring import score_locally
from service.commands.question import (
    BadUsage,
    Question,
    find_data,
    parse_candidates,
    parse_keys,
    parse_seeds,
    read_target,
)
from service.commands.score_sheet import OnProgress, ScoreSheet, all_errors, is_trouble
from service.commands.terminal import candidate_bars, print_sheet
from service.config import Settings
from service.exit_codes import ExitCode
from workers.architectures import CURRENT_VERSION, load_architecture


def run_score(
    *,
    weights: list[str],
    data: str,
    seed: int,
    seeds: int,
    target: Path | None,
    key: list[str] | None,
    key_file: list[Path] | None,
    json: bool,
    report: Path | None,
    url: str | None,
    api_key: str | None,
    settings: Settings,
) -> int:
    """Returns the exit code: 0 when there is a winner. Raises BadUsage, ScoringError, WorkerError or OSError."""
    if report is not None and url is not None:
        raise BadUsage("--report needs the weights evaluated here: leave out --url")
    if report is not None and not report.absolute().parent.is_dir():
        raise BadUsage(f"--report {report}: there is no such folder")
    with tempfile.TemporaryDirectory(prefix="soma-eval-") as folder:
        question = Question(
            candidates=parse_candidates(weights, parse_keys(key or [], key_file or [])),
            data=find_data(data, Path(folder) / "data"),
            seeds=parse_seeds(seed, seeds),
            target=None if target is None else read_target(target, _embedding_dim(settings, url)),
            detail=report is not None,
        )
        with candidate_bars(question) as on_progress:
            sheet = asyncio.run(_answer(question, settings, url, api_key, on_progress))
        _print(sheet, json)
        if report is not None:
            from service.commands.report import write_report

            write_report(sheet, report)
    return exit_code(sheet)


async def _answer(
    question: Question, settings: Settings, url: str | None, api_key: str | None, on_progress: OnProgress
) -> ScoreSheet:
    if url is None:
        return await score_locally(question, settings, on_progress)
    from service.commands.remote import score_remotely

    return await score_remotely(question, url, api_key, on_progress)


def _print(sheet: ScoreSheet, json: bool) -> None:
    if json:
        sys.stdout.write(json_format.dumps(sheet.to_json(), allow_nan=False) + "\n")
    else:
        print_sheet(sheet)


def exit_code(sheet: ScoreSheet) -> ExitCode:
    """Good only where every candidate has a number or deserves none: trouble leaves the comparison incomplete."""
    if any(map(is_trouble, all_errors(sheet.outcomes))):
        return ExitCode.MACHINE
    return ExitCode.AT_FAULT if sheet.winner is None else ExitCode.GOOD


def _embedding_dim(settings: Settings, url: str | None) -> int | None:
    """None where the service at the URL decides which model it is."""
    if url is not None:
        return None
    config = load_architecture(CURRENT_VERSION).ModelConfig
    dim: Any = asdict(config.small() if settings.small_model else config())["embedding_dim"]
    return int(dim)
