"""The answer of `POST /eval` as a Run. What sends it may be anything: every member is checked before it is used."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from service.cli.remote_error import shortened
from service.cli.score.score_sheet import Run
from service.cli.service_client import NotOurs, kind_of_value


def parse_run(
    answer: Mapping[str, Any], data_name: str, seed: int, num_tokens: int, num_predicted: int
) -> Run:
    """One candidate's numbers. Raises NotOurs, which names the member that is missing or odd."""
    timings, provenance = _object(answer, "timings"), _object(answer, "provenance")
    versions = provenance.get("versions")
    return Run(
        data=data_name,
        seed=seed,
        loss=_number(answer, "loss"),
        cross_entropy=_number(answer, "cross_entropy"),
        sig_reg=_number(answer, "sig_reg"),
        embedding=_embedding(answer),
        distance=None if answer.get("distance") is None else _number(answer, "distance"),
        attends_to_future=_flag(answer, "attends_to_future"),
        num_tokens=num_tokens,
        num_predicted=num_predicted,
        load_seconds=_number(timings, "load_seconds"),
        eval_seconds=_number(timings, "eval_seconds"),
        precision=shortened(str(provenance.get("precision", ""))),
        device=shortened(str(provenance.get("device", ""))),
        numerics_version=shortened(str(provenance.get("numerics_version", ""))),
        computed_at=_time(provenance, "computed_at"),
        result_cached=_flag(timings, "result_cached"),
        versions={str(k): str(v) for k, v in versions.items()} if isinstance(versions, dict) else {},
    )


def _object(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = answer.get(name)
    if not isinstance(value, dict):
        raise NotOurs(f"{name} is {kind_of_value(value)}")
    return value


def _number(answer: Mapping[str, Any], name: str) -> float:
    value = answer.get(name)
    if type(value) not in (int, float):
        raise NotOurs(f"{name} is {kind_of_value(value)}")
    return _finite(cast(float, value), name)


def _flag(answer: Mapping[str, Any], name: str) -> bool:
    value = answer.get(name)
    if not isinstance(value, bool):
        raise NotOurs(f"{name} is {kind_of_value(value)}")
    return value


def _time(answer: Mapping[str, Any], name: str) -> datetime:
    try:
        return datetime.fromisoformat(str(answer.get(name)))
    except ValueError:
        raise NotOurs(f"{name} is no time") from None


def _embedding(answer: Mapping[str, Any]) -> NDArray[np.float32]:
    numbers = answer.get("embedding")
    if not isinstance(numbers, list) or not numbers:
        raise NotOurs(f"embedding is {kind_of_value(numbers)}")
    if not all(type(number) in (int, float) for number in numbers):
        raise NotOurs("embedding holds what is no number")
    wide = np.array([_finite(number, "embedding") for number in numbers])
    with np.errstate(over="ignore"):
        embedding: NDArray[np.float32] = wide.astype(np.float32)
    if not np.isfinite(embedding).all():
        raise NotOurs("embedding holds a number too large")
    return embedding


def _finite(value: float, name: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise NotOurs(f"{name} is too large or no number")
    return number
