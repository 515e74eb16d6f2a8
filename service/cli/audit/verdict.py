"""A claim against our own numbers, by the rule of the network's validators.

Their rule: the winner is the same model, and its distance and loss are within tolerance. (Source: the validator's
audit service, and the permissive tolerance of the Burn framework, which it uses.) It knows no near tie: where the two
best models are closer than the tolerance, an honest submitter's winner may be another validator's second. That is
said here, and such a claim is neither confirmed nor denied.
"""

import math
from dataclasses import dataclass
from typing import Any

from service.cli.audit.claim import Claim
from service.cli.audit.our_answer import ModelAnswer, OurAnswer
from service.cli.embedding_file import float32_numbers
from service.errors import ScoringError
from service.scoring.competition import is_near_tie, is_within_tolerance


@dataclass(frozen=True, slots=True)
class Field:
    """One number of a claim beside ours."""

    claimed: Any
    ours: Any
    """None where we have none."""
    within_tolerance: bool | None
    """None where it could not be told."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a claim."""

    claim: str
    agrees: bool | None
    """None where it could not be told."""
    fields: dict[str, Field]
    """Empty where we have no answer."""
    flippable: bool
    """Whether the two best models are so near that another honest validator could name another winner."""
    sentence: str

    def to_json(self) -> dict[str, Any]:
        """What `audit --json` prints."""
        fields = {
            name: {"claimed": field.claimed, "ours": field.ours, "within_tolerance": field.within_tolerance}
            for name, field in self.fields.items()
        }
        return {
            "claim": self.claim,
            "agrees": self.agrees,
            "fields": fields,
            "flippable": self.flippable,
            "verdict": self.sentence,
        }


def judge(claim: Claim, ours: OurAnswer) -> Verdict:
    """Compare every number; those of the winner that is claimed, where it is as good as ours."""
    is_tie = claim.winner != ours.winner and _ties_with_the_winner(claim.winner, ours)
    winner = Field(claim.winner, ours.winner, None if is_tie else claim.winner == ours.winner)
    model = ours.models[claim.winner if is_tie else ours.winner]
    fields = {"winner": winner, **_numbers(claim, model)}
    agrees, sentence = _conclude(claim, ours, fields)
    return Verdict(claim.name, agrees, fields, ours.near_tie, sentence)


def no_answer(claim: Claim, error: ScoringError) -> Verdict:
    """Where our own evaluation ended in an error. Data that is not what the claim says is the claim's fault."""
    reason = f"{error.detail} ({error.full_code})"
    if error.fault == "data_submitter" and not error.retryable:
        return Verdict(claim.name, False, {}, False, f"Does not agree: {reason}.")
    also = (
        " Validators hold data that they cannot fetch against its submitter."
        if error.full_code == "data-unavailable"
        else ""
    )
    return Verdict(claim.name, None, {}, False, f"Could not tell: {reason}.{also}")


def _ties_with_the_winner(index: int, ours: OurAnswer) -> bool:
    loss = ours.models[index].loss if index < len(ours.models) else None
    best = ours.models[ours.winner].loss
    return loss is not None and best is not None and is_near_tie(best, loss - best)


def _numbers(claim: Claim, model: ModelAnswer) -> dict[str, Field]:
    fields = {
        "loss_score": _number(claim.loss_score, model.loss),
        "distance": _number(claim.distance, model.distance),
    }
    if claim.embedding is not None:
        fields["embedding"] = _embedding(claim.embedding, model)
    return fields


def _number(claimed: float, ours: float | None) -> Field:
    shown = claimed if math.isfinite(claimed) else str(claimed)  # JSON knows no infinity
    return Field(shown, ours, None if ours is None else is_within_tolerance(ours, claimed))


def _embedding(claimed: tuple[float, ...], model: ModelAnswer) -> Field:
    shown = [number if math.isfinite(number) else str(number) for number in claimed]
    if model.embedding is None:
        return Field(shown, None, None)
    ours = float32_numbers(model.embedding)
    same = len(ours) == len(claimed) and all(map(is_within_tolerance, ours, claimed))
    return Field(shown, ours, same)


def _conclude(claim: Claim, ours: OurAnswer, fields: dict[str, Field]) -> tuple[bool | None, str]:
    wrong = [name for name, field in fields.items() if field.within_tolerance is False]
    failed = [(index, model.error) for index, model in enumerate(ours.models) if model.loss is None]
    if failed:
        index, error = failed[0]
        return None, f"Could not tell: model {index} could not be evaluated: {error}."
    if wrong:
        what = "the winner" if wrong == ["winner"] else ", ".join(wrong)
        more = f": model {claim.winner} is claimed, model {ours.winner} won" if "winner" in wrong else ""
        return False, f"Does not agree in {what}{more}."
    if claim.winner != ours.winner:
        return None, (
            f"Could not tell: model {ours.winner} won here and model {claim.winner} is claimed, but the two are nearer "
            "than validators may differ; all other numbers are those of the model that is claimed."
        )
    near = (
        " Another validator could name another winner: the two best are a near tie." if ours.near_tie else ""
    )
    return True, f"Agrees: every number is within 1 % or 0.01 of ours.{near}"
