"""A claim: a competition, and what somebody says came out of it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.blob import BlobRef
from service.cli.input_file import PipeLimits, read_small_file, read_stdin, reason_of
from service.cli.usage import BadUsage
from service.errors import InvalidKey, InvalidRequest
from service.scoring.competition import Competition, competitors

_MAX_BYTES = 256 << 20
_NUM_SEEDS = 1 << 64


@dataclass(frozen=True, slots=True)
class Claim:
    """One claim."""

    name: str
    """Its `id`, or which one of the file it is, counted from 1."""
    request: Mapping[str, Any] = field(repr=False)
    """As POST /score takes it."""
    competition: Competition = field(repr=False)
    winner: int
    loss_score: float
    distance: float
    embedding: tuple[float, ...] | None = field(repr=False)


def read_claims(given: str) -> list[Claim]:
    """One claim, a list of them, or one on each line. Raises BadUsage, which says what is wrong where."""
    try:
        limits = PipeLimits(max_bytes=_MAX_BYTES)
        content = b"".join(read_stdin(limits)) if given == "-" else read_small_file(Path(given), _MAX_BYTES)
    except (OSError, BadUsage) as error:
        raise BadUsage(f"{given}: {reason_of(error)}") from None
    found = _parse(given, content)
    if not found:
        raise BadUsage(f"{given}: there is no claim in it")
    return [_claim(given, item, number) for number, item in enumerate(found, start=1)]


def _parse(given: str, content: bytes) -> list[Any]:
    try:
        whole = json.loads(content)
        return whole if isinstance(whole, list) else [whole]
    except (ValueError, RecursionError):
        pass
    try:
        return [json.loads(line) for line in content.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise BadUsage(f"{given}: it is neither JSON nor JSON on each line") from None


def _claim(given: str, found: Any, number: int) -> Claim:
    try:
        return _parse_claim(found, number)
    except KeyError as error:
        reason = f"{error.args[0]} is missing"
    except (TypeError, ValueError, OverflowError) as error:
        reason = f"{error.args[0] if error.args else 'something'} is not what it should be"
    except (InvalidRequest, InvalidKey) as error:
        reason = error.detail
    raise BadUsage(f"{given}: claim {number}: {reason}") from None


def _parse_claim(found: Any, number: int) -> Claim:
    if not isinstance(found, dict):
        raise ValueError("the whole")
    claimed = found["claimed"]
    if not isinstance(claimed, dict):
        raise ValueError("claimed")
    embedding = claimed.get("embedding")
    return Claim(
        name=str(found.get("id", number))[:100],
        request={name: value for name, value in found.items() if name not in ("claimed", "id")},
        competition=_competition(found),
        winner=_integer(claimed, "winner", 1 << 32),
        loss_score=_score(claimed, "loss_score"),
        distance=_score(claimed, "distance"),
        embedding=None if embedding is None else _numbers(claimed, "embedding"),
    )


def _competition(found: Mapping[str, Any]) -> Competition:
    manifests = found["model_manifests"]
    if not isinstance(manifests, list) or not manifests or not all(isinstance(m, dict) for m in manifests):
        raise ValueError("model_manifests")
    return Competition(
        data=_blob(found, "data_url", "data_checksum", "data_size"),
        models=competitors(
            [(_blob(m, "url", "checksum", "size"), _text(m, "decryption_key")) for m in manifests]
        ),
        seed=_integer({"seed": 0} | dict(found), "seed", _NUM_SEEDS),
        target_embedding=_numbers(found, "target_embedding"),
    )


def _blob(found: Mapping[str, Any], url: str, checksum: str, size: str) -> BlobRef:
    address = _text(found, url)
    if address is None:
        raise KeyError(url)
    length = None if found.get(size) is None else _integer(found, size, 1 << 63)
    return BlobRef(address, _text(found, checksum), length)


def _text(found: Mapping[str, Any], name: str) -> str | None:
    value = found.get(name)
    if value is not None and not isinstance(value, str):
        raise ValueError(name)
    return value


def _integer(found: Mapping[str, Any], name: str, end: int) -> int:
    value = found[name]
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(name)
    return value


def _score(found: Mapping[str, Any], name: str) -> float:
    """A number, or a list of that one number, as the network has it. A claim may be any number, infinite too."""
    value = found[name]
    numbers: Sequence[Any] = value if isinstance(value, list) else [value]
    if len(numbers) != 1 or type(numbers[0]) not in (int, float):
        raise ValueError(name)
    return float(numbers[0])


def _numbers(found: Mapping[str, Any], name: str) -> tuple[float, ...]:
    numbers = found[name]
    if not isinstance(numbers, list) or not numbers or any(type(n) not in (int, float) for n in numbers):
        raise ValueError(name)
    if name == "target_embedding" and not all(map(math.isfinite, numbers)):
        raise ValueError(name)
    return tuple(map(float, numbers))
