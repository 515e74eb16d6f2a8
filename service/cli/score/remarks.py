"""What the numbers of a score sheet do not say by themselves, in sentences; the table and the page show the same."""

from collections.abc import Iterator, Sequence

from rich.text import Text

from service.cli.diagnosis import finding_lines
from service.cli.printable import printable
from service.cli.remote_error import remedy_for
from service.cli.score.against import compare
from service.cli.score.question import Question
from service.cli.score.score_sheet import Outcome, ScoreSheet, all_errors

_NETWORK_MAX_DATA_BYTES = 1 << 20
_MAX_REASONS = 3
_MAX_NAMES = 3


def title_of(question: Question) -> str:
    """What was scored, in one line."""
    size = sum(data.size for data in question.data)
    what = "standard input" if question.data[0].name == "-" else printable(question.data[0].name)
    files = what if len(question.data) == 1 else f"{len(question.data)} files"
    seeds = question.seeds
    drawn = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    return f"{size:,} bytes of {files}, {drawn}; loss = cross-entropy + 0.02 SIGReg, lower is better"


def remarks(sheet: ScoreSheet) -> Iterator[Text]:
    """What the numbers alone do not say."""
    for outcome in sheet.outcomes:
        if outcome.error is not None:
            yield from reasons(outcome)
        elif outcome.attends_to_future:
            yield _warning(
                f"{printable(outcome.candidate.name)} sees the bytes it predicts: masked positions won weight "
                "in its attention (attends_to_future). The network computes this loss; validators will look twice."
            )
    yield from _remarks_on_the_winner(sheet)
    yield from _remarks_on_the_question(sheet)
    if sheet.question.has_live_models:
        yield Text(compare(sheet).sentence, style="bold")


def reasons(outcome: Outcome) -> Iterator[Text]:
    """Why a candidate has no loss, and what to do."""
    assert outcome.error is not None
    name = outcome.candidate.name
    if not outcome.findings:
        text = f"✗ {printable(name)}: {printable(outcome.error.detail)}. {remedy_for(outcome.error)}"
        yield Text(text, style="red")
    for line in finding_lines(outcome.findings, name=name, limit=_MAX_REASONS):
        yield Text(line, style="red")


def _remarks_on_the_winner(sheet: ScoreSheet) -> Iterator[Text]:
    num_failed = len(all_errors(sheet.outcomes))
    if sheet.is_incomplete:
        yield _warning(
            "The comparison is incomplete: a candidate above could not be evaluated, which says nothing of its weights."
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
    num_kept = sum(run.result_cached for outcome in sheet.outcomes for run in outcome.runs)
    if num_kept:
        num_runs = sum(len(outcome.runs) for outcome in sheet.outcomes)
        kept = f"{num_kept} of {num_runs} results were" if num_runs > 1 else "The result was"
        yield Text(f"{kept} kept from an earlier evaluation; --no-cache computes anew.")
    if question.num_skipped:
        yield Text(f"Left out of the folder: {question.num_skipped} hidden, backup or empty files.")
    if any(data.size > _NETWORK_MAX_DATA_BYTES for data in question.data):
        yield _warning("The network evaluates at most 1 MiB at once; this data is larger.")
    precisions = {run.precision for outcome in sheet.outcomes for run in outcome.runs} - {"", "float32"}
    if precisions:
        yield _warning(f"Computed in {', '.join(sorted(precisions))}: the network computes in float32.")


def _warning(text: str) -> Text:
    return Text(f"! {text}", style="yellow")


def _listed(names: Sequence[str]) -> str:
    shown = [printable(name) for name in names[:_MAX_NAMES]]
    more = [f"{len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    parts = shown + more
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
