"""The file of `score --embedding-out`: one embedding, and exactly which weights and data it was computed from.

`encrypt` takes it to print a commit. The format is one JSON object; a reader ignores members it does not know.
"""

import errno
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.checksum import is_checksum
from service.cli.output_file import write_whole
from service.cli.usage import BadUsage

FORMAT = "soma-eval embedding 1"
NUM_SEEDS = 1 << 64
"""Seeds are 0 .. NUM_SEEDS - 1."""
_MAX_FILE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """One embedding and its origin."""

    weights: str
    """The weights as they were named; a URL without user, password and query."""
    checksum: str
    """Blake2b-256 of the plain weights, Base58: of encrypted weights, what they decrypt to."""
    embedding: NDArray[np.float32] = field(repr=False)
    """[embedding_dim], finite and not all zero."""
    data_checksum: str
    """Blake2b-256 of the data, Base58."""
    data_size: int
    """Bytes."""
    seed: int
    """0 .. 2**64 - 1. No seed changes the embedding; it is that of the loss."""
    loss: float
    architecture_version: str
    small_model: bool
    precision: str
    device: str
    versions: dict[str, str]
    """Of the packages that computed it, by name."""
    computed_at: str
    """UTC, ISO 8601."""
    architecture: str
    """Its name: network, small, or another."""


def write_embedding_file(path: Path, content: EmbeddingFile) -> None:
    """Write it whole or not at all. Raises OSError."""
    fields = asdict(content) | {"embedding": float32_numbers(content.embedding)}
    write_whole(path, json.dumps({"format": FORMAT, **fields}, allow_nan=False) + "\n")


def read_embedding_file(path: Path) -> EmbeddingFile:
    """Read and check every member. Raises BadUsage, which says what is wrong, or OSError."""
    found = _read_object(path)
    if found is None or found.get("format") != FORMAT:
        raise BadUsage(f"{path} is not a file that `soma-eval score --embedding-out` wrote")
    try:
        content = _parse(found)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise BadUsage(f"{path} was changed since `soma-eval score` wrote it: {_reason(error)}") from None
    return content


def is_embedding_file(path: Path) -> bool:
    """Whether a file says that it is one."""
    try:
        found = _read_object(path)
    except OSError:
        return False
    return found is not None and found.get("format") == FORMAT


def float32_numbers(numbers: NDArray[np.float32]) -> list[float]:
    """Each with the fewest digits that give the same float32 again."""
    return [_shortest(number) for number in numbers]


def _shortest(number: np.float32) -> float:
    short = float(str(number))
    return short if np.float32(short) == number else float(number)


def _read_object(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
    if not path.is_file() or path.stat().st_size > _MAX_FILE_BYTES:
        return None
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _parse(found: dict[str, Any]) -> EmbeddingFile:
    seed, size, loss = found["seed"], found["data_size"], found["loss"]
    _check(type(seed) is int and 0 <= seed < NUM_SEEDS, "seed")
    _check(type(size) is int and size >= 1, "data_size")
    _check(type(loss) in (int, float) and math.isfinite(loss), "loss")
    _check(type(found["small_model"]) is bool, "small_model")
    versions = found["versions"]
    _check(
        isinstance(versions, dict) and all(isinstance(text, str) for text in versions.values()), "versions"
    )
    texts = {
        name: found[name]
        for name in ("weights", "checksum", "data_checksum", "architecture_version", "precision", "device")
    }
    texts["computed_at"] = found["computed_at"]
    texts["architecture"] = found.get("architecture", "small" if found["small_model"] else "network")
    for name, text in texts.items():
        _check(isinstance(text, str), name)
    for name in ("checksum", "data_checksum"):
        _check(is_checksum(texts[name]), name)
    return EmbeddingFile(
        embedding=_parse_embedding(found["embedding"]),
        data_size=size,
        seed=seed,
        loss=float(loss),
        small_model=found["small_model"],
        versions=dict(versions),
        **texts,
    )


def _parse_embedding(numbers: object) -> NDArray[np.float32]:
    _check(isinstance(numbers, list) and len(numbers) > 0, "embedding")
    assert isinstance(numbers, list)
    _check(all(type(number) in (int, float) for number in numbers), "embedding")
    with np.errstate(over="ignore"):
        embedding = np.array(numbers, dtype=np.float64).astype(np.float32)
    _check(bool(np.isfinite(embedding).all() and embedding.any()), "embedding")
    return embedding


def _check(is_good: bool, name: str) -> None:
    if not is_good:
        raise ValueError(name)


def _reason(error: Exception) -> str:
    name = error.args[0] if error.args else "a member"
    return f"{name} is missing" if isinstance(error, KeyError) else f"{name} is not what it was"
