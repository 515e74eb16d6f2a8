"""What `soma-eval score` does: from the flags to a table, JSON or a page, and an exit code."""

import asyncio
import json as json_format
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np

from service.cli.architecture_flags import architecture_flags
from service.cli.embedding_file import EmbeddingFile, is_embedding_file, write_embedding_file
from service.cli.exit_codes import ExitCode
from service.cli.header_check import model_config
from service.cli.keys import parse_keys
from service.cli.output_file import refuse_unsafe_output
from service.cli.printable import printable
from service.cli.score.against import compare
from service.cli.score.candidate_bars import candidate_bars
from service.cli.score.held_out import FoundData, find_data
from service.cli.score.live_models import read_live_models
from service.cli.score.question import Question, parse_candidates, parse_seeds, read_target
from service.cli.score.score_sheet import OnProgress, ScoreSheet
from service.cli.score.table import print_sheet
from service.cli.standard_streams import write_out
from service.cli.starting import say_what_is_awaited
from service.cli.urls import is_url, refuse_far_service, without_secrets
from service.cli.usage import BadUsage
from service.config import Settings
from service.errors import ZeroEmbedding
from service.log import configure_log
from service.scoring.served_architecture import architecture_of
from workers.architectures import CURRENT_VERSION


def run_score(
    *,
    weights: list[str],
    data: str,
    seed: int,
    seeds: int,
    target: Path | None,
    key: list[str] | None,
    key_file: list[Path] | None,
    against: Path | None,
    json: bool,
    report: Path | None,
    embedding_out: Path | None,
    url: str | None,
    api_key: str | None,
    no_cache: bool,
    settings: Settings,
) -> int:
    """Returns the exit code, see `exit_code`. Raises BadUsage, ScoringError, WorkerError or OSError."""
    configure_log("console", "warning")
    outputs = {"--report": report, "--embedding-out": embedding_out}
    _refuse_impossible_outputs(outputs, url)
    with find_data(data) as found:
        question = Question(
            candidates=(
                *parse_candidates(weights, parse_keys(key or [], key_file or [])),
                *(read_live_models(against) if against is not None else ()),
            ),
            data=found.files,
            seeds=parse_seeds(seed, seeds),
            target=None if target is None else read_target(target, _embedding_dim(settings, url)),
            detail=report is not None,
            checksums=any(outputs.values()),
            num_skipped=found.num_skipped,
            compute_anew=no_cache,
        )
        inputs = _inputs(question, found, [target, against, *(key_file or [])])
        if report is not None:
            from service.cli.score.report import is_report

            refuse_unsafe_output(report, "--report", inputs, is_report, "a page of `score --report`")
        if embedding_out is not None:
            _refuse_several_runs(question)
            kind = "a file of `score --embedding-out`"
            refuse_unsafe_output(embedding_out, "--embedding-out", inputs, is_embedding_file, kind)
        if url is not None and not all(candidate.is_url for candidate in question.candidates):
            refuse_far_service(url, "give URLs as --weights")
        say_what_is_awaited(settings, url)
        with candidate_bars(question, "waiting" if url else "starting a worker") as on_progress:
            sheet = asyncio.run(_evaluate(question, settings, url, api_key, on_progress))
        now = datetime.now(UTC)
        page = None
        if report is not None:
            from service.cli.score.report import Origin, render_report

            command = command_line(weights, data, seed, seeds, target, against, key_file, settings)
            page = render_report(sheet, Origin(now, command, CURRENT_VERSION, architecture_of(settings).name))
    _print(sheet, json)
    if report is not None and page is not None:
        from service.cli.score.report import write_report

        write_report(page, report)
    if embedding_out is not None and sheet.winner is not None:
        write_embedding_file(embedding_out, embedding_of(sheet, settings, now))
    _print_what_was_written(outputs, sheet, json)
    return exit_code(sheet)


def exit_code(sheet: ScoreSheet) -> ExitCode:
    """Good only where every candidate has a number or deserves none: trouble leaves the comparison incomplete."""
    if sheet.is_incomplete:
        return ExitCode.MACHINE
    return ExitCode.AT_FAULT if sheet.winner is None else ExitCode.GOOD


def command_line(
    weights: Sequence[str],
    data: str,
    seed: int,
    seeds: int,
    target: Path | None,
    against: Path | None,
    key_files: Sequence[Path] | None,
    settings: Settings,
) -> str:
    """A command that gives these numbers again, made of what may be shown: no key, and no query of a URL."""
    parts = ["soma-eval", "score"]
    parts += [without_secrets(name) if is_url(name) else name for name in weights]
    parts += ["--data", data, "--seed", str(seed), "--seeds", str(seeds)]
    parts += [] if target is None else ["--target", str(target)]
    parts += [] if against is None else ["--against", str(against)]
    parts += [part for path in key_files or [] for part in ("--key-file", str(path))]
    parts += architecture_flags(settings)
    parts += ["--device", ",".join(settings.device), "--precision", settings.precision]
    return shlex.join(parts)


def embedding_of(sheet: ScoreSheet, settings: Settings, now: datetime) -> EmbeddingFile:
    """What `--embedding-out` keeps of the one run of the one candidate. Raises ZeroEmbedding."""
    (outcome,) = sheet.outcomes
    (run,) = outcome.runs
    assert outcome.checksums is not None
    if not run.embedding.any():
        raise ZeroEmbedding("the model's embedding is the zero vector, which no target can be near")
    return EmbeddingFile(
        weights=outcome.candidate.name,
        checksum=outcome.checksums.plain,
        embedding=np.asarray(run.embedding, dtype=np.float32),
        data_checksum=sheet.data_checksums[0],
        data_size=sheet.question.data[0].size,
        seed=run.seed,
        loss=run.loss,
        architecture_version=CURRENT_VERSION,
        small_model=settings.small_model,
        architecture=architecture_of(settings).name,
        precision=run.precision,
        device=run.device,
        versions={"soma-eval": version("soma-eval"), **run.versions},
        computed_at=f"{run.computed_at or now:%Y-%m-%dT%H:%M:%SZ}",
    )


def _refuse_impossible_outputs(outputs: dict[str, Path | None], url: str | None) -> None:
    given = {flag: path for flag, path in outputs.items() if path is not None}
    if sys.stdout is None and not given:
        raise BadUsage("standard output is closed, so no result would be seen: open it, or give --report")
    for flag in given if url is not None else ():
        raise BadUsage(f"{flag} needs the weights evaluated here: leave out --url")
    if len({path.absolute() for path in given.values()}) < len(given):
        raise BadUsage("--report and --embedding-out cannot go to one file")


def _refuse_several_runs(question: Question) -> None:
    """The mean of several embeddings is one that no evaluation gives."""
    counts = {
        "weights files": len(question.candidates),
        "files of data": len(question.data),
        "seeds": len(question.seeds),
    }
    for what, count in counts.items():
        if count > 1:
            raise BadUsage(
                f"--embedding-out is the embedding of one weights file on one file of data with one seed, "
                f"and there are {count} {what}: score the one you will commit by itself"
            )


def _inputs(question: Question, found: FoundData, others: Sequence[Path | None]) -> list[Path]:
    weights = [Path(candidate.weights) for candidate in question.candidates if not candidate.is_url]
    return [*weights, *(data.path for data in found.files), *(path for path in others if path is not None)]


async def _evaluate(
    question: Question, settings: Settings, url: str | None, api_key: str | None, on_progress: OnProgress
) -> ScoreSheet:
    if url is None:
        from service.cli.score.local import score_locally  # takes longer than all else that is imported

        return await score_locally(question, settings, on_progress)
    from service.cli.score.remote import score_remotely

    return await score_remotely(question, url, api_key, on_progress)


def _print(sheet: ScoreSheet, json: bool) -> None:
    if sys.stdout is None:
        return
    if json:
        content = sheet.to_json()
        if sheet.question.has_live_models:
            content["against"] = compare(sheet).to_json()
        write_out(json_format.dumps(content, allow_nan=False) + "\n")
    else:
        print_sheet(sheet)


def _print_what_was_written(outputs: dict[str, Path | None], sheet: ScoreSheet, json: bool) -> None:
    if json or sys.stdout is None:
        return
    report, embedding = (outputs[flag] for flag in ("--report", "--embedding-out"))
    if report is not None:
        write_out(f"The report is in {printable(str(report))}.\n")
    if embedding is not None and sheet.winner is not None:
        write_out(f"The embedding is in {printable(str(embedding))}, for `soma-eval encrypt --embedding`.\n")
    elif embedding is not None:
        write_out(f"There is no embedding: {printable(str(embedding))} was not written.\n")


def _embedding_dim(settings: Settings, url: str | None) -> int | None:
    """None where the service at the URL decides which model it is."""
    return None if url is not None else int(model_config(settings).embedding_dim)
