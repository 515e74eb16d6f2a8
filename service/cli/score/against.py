"""Is a commit worth its fee? The best candidate against the models that are live, on this data."""

from dataclasses import asdict, dataclass
from typing import Any

from service.cli.printable import printable
from service.cli.score.score_sheet import Outcome, ScoreSheet, is_trouble
from service.scoring.competition import is_near_tie, near_tie_margin


@dataclass(frozen=True, slots=True)
class Comparison:
    """What `--against` answers."""

    worth_it: bool | None
    """Ahead by more than validators may differ by, and in most runs; None where it could not be told."""
    candidate: int | None
    """Index of the best candidate; None where none has a loss."""
    best_live: int | None
    """Index of the live model with the lowest loss."""
    lead: float | None
    """The live model's mean loss less the candidate's."""
    tolerance: float | None
    """What validators may differ by."""
    wins: int
    """Runs in which the candidate's loss is below that of every live model."""
    num_runs: int
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """What `score --json` prints of it."""
        return asdict(self)


def compare(sheet: ScoreSheet) -> Comparison:
    """The answer to the question of a sheet that has live models."""
    order = sheet.best_first()
    candidate = next((i for i in order if not sheet.outcomes[i].candidate.is_live), None)
    best_live = next((i for i in order if sheet.outcomes[i].candidate.is_live), None)
    lead = tolerance = None
    wins = 0
    if candidate is not None and best_live is not None:
        loss, live_loss = sheet.outcomes[candidate].loss or 0.0, sheet.outcomes[best_live].loss or 0.0
        lead, tolerance = live_loss - loss, near_tie_margin(loss)
        wins = _num_wins(sheet, sheet.outcomes[candidate])
    worth_it, sentence = _conclude(sheet, candidate, best_live, lead, wins)
    return Comparison(
        worth_it, candidate, best_live, lead, tolerance, wins, sheet.question.num_runs, sentence
    )


def _num_wins(sheet: ScoreSheet, candidate: Outcome) -> int:
    live = [outcome for outcome in sheet.outcomes if outcome.candidate.is_live and outcome.runs]
    return sum(all(run.loss < other.runs[i].loss for other in live) for i, run in enumerate(candidate.runs))


def _conclude(
    sheet: ScoreSheet, candidate: int | None, best_live: int | None, lead: float | None, wins: int
) -> tuple[bool | None, str]:
    unknown = [o for o in sheet.outcomes if o.error is not None and is_trouble(o.error)]
    if candidate is None:
        if any(not outcome.candidate.is_live for outcome in unknown):
            return None, "Is it worth the fee? It cannot be told: no candidate could be evaluated."
        return False, "Not worth the fee: no candidate has a loss."
    name = printable(sheet.outcomes[candidate].candidate.name)
    if best_live is None or lead is None:
        return None, "Is it worth the fee? It cannot be told: no live model could be evaluated."
    live_name = printable(sheet.outcomes[best_live].candidate.name)
    loss = sheet.outcomes[candidate].loss or 0.0
    allowed = f"the {near_tie_margin(loss):.6f} that validators may differ by"
    runs = f"in {wins} of {sheet.question.num_runs} runs"
    if lead <= 0:
        return False, f"Not worth the fee on this data: live {live_name} is ahead of {name} by {-lead:.6f}."
    if is_near_tie(loss, lead):
        return False, (
            f"Not worth the fee on this data: {name} is ahead of live {live_name} by only {lead:.6f}, within "
            f"{allowed}; it is ahead of all live models {runs}."
        )
    if 2 * wins <= sheet.question.num_runs:
        return False, f"Not worth the fee on this data: {name} is ahead of all live models only {runs}."
    missing = next((outcome for outcome in unknown if outcome.candidate.is_live), None)
    if missing is not None:
        return None, (
            "Is it worth the fee? It cannot be told: live "
            f"{printable(missing.candidate.name)} could not be evaluated, and {name} is ahead of all others."
        )
    return True, (
        f"Worth the fee on this data: {name} is ahead of the best live model, {live_name}, by {lead:.6f}, more than "
        f"{allowed}, and of all live models {runs}."
    )
