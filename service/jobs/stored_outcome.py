"""Results, errors and progress as JSON and back, to the last bit: JSON writes every float so that it reads the same."""

import base64
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime
from typing import Any, TypeVar

import numpy as np

from service import errors
from service.errors import InternalError, ScoringError
from service.scoring.results import (
    CompetitionResult,
    Evaluation,
    ModelOutcome,
    Progress,
    Provenance,
    Timings,
)
from workers.types import EvalResult

T = TypeVar("T")

_ERRORS: dict[str, type[ScoringError]] = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ScoringError)
}


def result_to_json(result: Evaluation | CompetitionResult) -> str:
    """The result as JSON."""
    if isinstance(result, Evaluation):
        return json.dumps(evaluation_to_dict(result))
    outcomes = [
        {
            "evaluation": None if outcome.evaluation is None else evaluation_to_dict(outcome.evaluation),
            "error": None if outcome.error is None else error_to_dict(outcome.error),
        }
        for outcome in result.outcomes
    ]
    return json.dumps(
        {
            "winner": result.winner,
            "outcomes": outcomes,
            "margin": result.margin,
            "near_tie": result.near_tie,
        }
    )


def result_from_json(text: str) -> Evaluation | CompetitionResult:
    """What `result_to_json` was given."""
    found = json.loads(text)
    if "outcomes" not in found:
        return evaluation_from(found)
    outcomes = tuple(
        ModelOutcome(
            evaluation=None if outcome["evaluation"] is None else evaluation_from(outcome["evaluation"]),
            error=None if outcome["error"] is None else error_from(outcome["error"]),
        )
        for outcome in found["outcomes"]
    )
    return CompetitionResult(found["winner"], outcomes, found["margin"], found["near_tie"])


def evaluation_to_dict(evaluation: Evaluation) -> dict[str, Any]:
    """The evaluation as a value of JSON."""
    provenance = evaluation.provenance
    return {
        "result": eval_result_to_dict(evaluation.result),
        "distance": evaluation.distance,
        "provenance": {**asdict(provenance), "computed_at": provenance.computed_at.isoformat()},
        "timings": asdict(evaluation.timings),
    }


def evaluation_from(found: Mapping[str, Any]) -> Evaluation:
    """What `evaluation_to_dict` was given."""
    provenance = found["provenance"]
    computed_at = datetime.fromisoformat(provenance["computed_at"])
    return Evaluation(
        result=eval_result_from(found["result"]),
        distance=found["distance"],
        provenance=_made(Provenance, {**provenance, "computed_at": computed_at}),
        timings=_made(Timings, found["timings"]),
    )


def eval_result_to_dict(result: EvalResult) -> dict[str, Any]:
    """What a pool has answered, without the detail and the times of its workers, as a value of JSON."""
    kept = [field.name for field in fields(result) if field.name not in ("tasks", "token_cross_entropy")]
    embedding = base64.b64encode(result.embedding.astype("<f4", copy=False).tobytes()).decode()
    return {**{name: getattr(result, name) for name in kept}, "embedding": embedding}


def eval_result_from(found: Mapping[str, Any]) -> EvalResult:
    """What `eval_result_to_dict` was given."""
    embedding = np.frombuffer(base64.b64decode(found["embedding"]), dtype="<f4")
    along = tuple(found.get("cross_entropy_along", ()))  # which earlier versions have not kept
    return _made(EvalResult, {**found, "embedding": embedding, "cross_entropy_along": along})


def error_to_dict(error: ScoringError) -> dict[str, Any]:
    """The error as a value of JSON. It holds no secret: no error does."""
    return {"class": type(error).__name__, **vars(error)}


def error_from(found: Mapping[str, Any]) -> ScoringError:
    """What `error_to_dict` was given; an InternalError for one that only another version of this service knows."""
    members = dict(found)
    kind = _ERRORS.get(members.pop("class"), InternalError)
    error = kind.__new__(kind, members["detail"])
    error.__dict__.update(members)
    return error


def progress_to_json(data: Progress | None, models: list[Progress]) -> str:
    """The latest progress of the data and of each model as JSON."""
    return json.dumps(
        [None if data is None else _progress_to_dict(data), list(map(_progress_to_dict, models))]
    )


def progress_from_json(text: str) -> tuple[Progress | None, list[Progress]]:
    """What `progress_to_json` was given."""
    data, models = json.loads(text)
    return None if data is None else _progress_from(data), list(map(_progress_from, models))


def _progress_to_dict(progress: Progress) -> dict[str, Any]:
    error = None if progress.error is None else error_to_dict(progress.error)
    return {**asdict(replace(progress, error=None)), "error": error}


def _progress_from(found: Mapping[str, Any]) -> Progress:
    error = found.get("error")
    return _made(Progress, {**found, "error": None if error is None else error_from(error)})


def _made(kind: type[T], found: Mapping[str, Any]) -> T:
    """A dataclass of what was stored; what only another version of this service knows is left out."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # every kind is a dataclass
    return kind(**{name: value for name, value in found.items() if name in names})
