"""What `soma-eval audit` does: each claim against our own numbers, and an exit code."""

import asyncio
import json as json_format
import random
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager

from service.cli.audit.claim import Claim, read_claims
from service.cli.audit.our_answer import AnswerClaim, answers_from_here, answers_from_service
from service.cli.audit.verdict import Field, Verdict, judge, no_answer
from service.cli.exit_codes import ExitCode
from service.cli.printable import printable
from service.cli.progress_bars import item_bar
from service.cli.standard_streams import write_out
from service.cli.starting import say_what_is_awaited
from service.cli.usage import BadUsage
from service.config import Settings
from service.errors import ScoringError


def run_audit(
    given: str, sample: int | None, *, json: bool, url: str | None, api_key: str | None, settings: Settings
) -> int:
    """Returns the exit code. Raises BadUsage, CommandFailed, a WorkerError or OSError."""
    if sys.stdout is None:
        raise BadUsage("standard output is closed, so no verdict would be seen: open it")
    claims = read_claims(given)
    if sample is not None and sample < len(claims):
        claims = random.SystemRandom().sample(claims, sample)
    answers = answers_from_here(settings) if url is None else answers_from_service(url, api_key)

    def show(verdict: Verdict) -> None:
        write_out(f"{json_format.dumps(verdict.to_json(), allow_nan=False)}\n" if json else _text(verdict))

    say_what_is_awaited(settings, url)
    with item_bar("auditing", len(claims), "waiting" if url else "starting a worker") as on_done:
        verdicts = asyncio.run(_judge_all(claims, answers, show, on_done))
    if not json and len(verdicts) > 1:
        write_out(_summary(verdicts))
    return _exit_code(verdicts)


async def _judge_all(
    claims: Sequence[Claim],
    answers: AbstractAsyncContextManager[AnswerClaim],
    show: Callable[[Verdict], None],
    on_done: Callable[[float], None],
) -> list[Verdict]:
    """One after the other: the models of one claim already use every device."""
    verdicts: list[Verdict] = []

    def on_fraction(fraction: float) -> None:
        on_done(len(verdicts) + fraction)

    async with answers as answer:
        for claim in claims:
            try:
                verdict = judge(claim, await answer(claim, on_fraction))
            except ScoringError as error:
                verdict = no_answer(claim, error)
            verdicts.append(verdict)
            show(verdict)
            on_done(len(verdicts))
    return verdicts


def _exit_code(verdicts: Sequence[Verdict]) -> ExitCode:
    results = [verdict.agrees for verdict in verdicts]
    if False in results:
        return ExitCode.AT_FAULT
    return ExitCode.MACHINE if None in results else ExitCode.GOOD


def _text(verdict: Verdict) -> str:
    sign = {True: "✓", False: "✗", None: "?"}[verdict.agrees]
    lines = [f"{sign} {printable(verdict.claim)}: {printable(verdict.sentence)}"]
    lines += [_line(name, field) for name, field in verdict.fields.items()]
    return "\n".join(lines) + "\n"


def _line(name: str, field: Field) -> str:
    judged = {True: "within tolerance", False: "NOT within tolerance", None: "not told"}[
        field.within_tolerance
    ]
    if name == "embedding":
        return f"  {name:<12}{f'{len(field.claimed):,} numbers':<37}{judged}"
    return f"  {name:<12}claimed {_shown(field.claimed):<12}ours {_shown(field.ours):<12}{judged}"


def _shown(value: object) -> str:
    return "-" if value is None else f"{value:.6f}" if isinstance(value, float) else str(value)


def _summary(verdicts: Sequence[Verdict]) -> str:
    counts = {agrees: sum(v.agrees is agrees for v in verdicts) for agrees in (True, False, None)}
    return f"{len(verdicts)} claims: {counts[True]} agree, {counts[False]} do not, {counts[None]} could not be told.\n"
