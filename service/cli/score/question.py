"""What a trainer asks: these candidates, on this held-out data, with these seeds. Made from what the shell gives."""

import glob
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.cli.embedding_file import NUM_SEEDS
from service.cli.input_file import kind_of, read_small_file, reason_of
from service.cli.score.held_out import HeldOut
from service.cli.urls import is_url, without_secrets
from service.cli.usage import BadUsage

_MAX_TARGET_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Candidate:
    """One set of weights."""

    weights: str
    """A path or a URL, as it was given."""
    key: bytes | None = field(default=None, repr=False)
    """32 bytes, or None for weights that are not encrypted."""
    checksum: str | None = None
    """What the bytes behind a URL must have, Base58; None: whatever comes."""
    size: int | None = None
    is_live: bool = False
    """A model of the network that the others are compared with."""

    @property
    def is_url(self) -> bool:
        return is_url(self.weights)

    @property
    def name(self) -> str:
        """What may be shown and kept: a URL without user, password and query, which may let others in."""
        return without_secrets(self.weights) if self.is_url else self.weights


@dataclass(frozen=True, slots=True)
class Question:
    """Each candidate is evaluated on each file with each seed."""

    candidates: tuple[Candidate, ...]
    data: tuple[HeldOut, ...]
    seeds: tuple[int, ...]
    target: tuple[float, ...] | None = field(default=None, repr=False)
    detail: bool = False
    """Whether the cross-entropy of every token is wanted too; it is the same for every seed."""
    checksums: bool = False
    """Whether the checksums of the weights are wanted too, which for encrypted ones takes reading them once more."""
    num_skipped: int = 0
    """Files of a folder of data that are not evaluated."""
    compute_anew: bool = False
    """Whether to compute even what is kept from an earlier evaluation."""

    @property
    def has_live_models(self) -> bool:
        """Whether the others are compared with models of the network."""
        return any(candidate.is_live for candidate in self.candidates)

    @property
    def num_runs(self) -> int:
        """Evaluations of one candidate."""
        return len(self.data) * len(self.seeds)


def parse_candidates(weights: Sequence[str], keys: Sequence[bytes | None]) -> tuple[Candidate, ...]:
    """Files, globs and URLs, with no key, one for all, or one for each in this order. Raises BadUsage."""
    names = [name for given in weights for name in _expand(given)]
    if len(keys) not in (0, 1, len(names)):
        raise BadUsage(f"{len(keys)} keys for {len(names)} weights files: give one key, or one for each")
    one_each = list(keys) * len(names) if len(keys) == 1 else keys or [None] * len(names)
    return tuple(Candidate(name, key) for name, key in zip(names, one_each, strict=True))


def parse_seeds(first: int, count: int) -> tuple[int, ...]:
    """`count` seeds from `first` on, wrapping at 2**64. Raises BadUsage."""
    if not 0 <= first < NUM_SEEDS:
        raise BadUsage("--seed lies in 0 .. 2^64 - 1")
    return tuple((first + i) % NUM_SEEDS for i in range(count))


def read_target(path: Path, embedding_dim: int | None) -> tuple[float, ...]:
    """A target embedding: a JSON list of numbers, or a .npy file. Raises BadUsage.

    `embedding_dim` is None where only a service elsewhere knows it.
    """
    try:
        numbers = _read_numbers(path)
    except (OSError, BadUsage) as error:
        raise BadUsage(f"--target {path}: {reason_of(error)}") from None
    except (ValueError, TypeError, OverflowError, RecursionError, EOFError):
        raise BadUsage(f"--target {path}: it is neither a JSON list of numbers nor a .npy file") from None
    if embedding_dim is not None and len(numbers) != embedding_dim:
        raise BadUsage(f"--target {path}: it has {len(numbers)} numbers, an embedding has {embedding_dim}")
    if not all(map(math.isfinite, numbers)) or not any(numbers):
        raise BadUsage(f"--target {path}: it is zero, or holds a number that is not finite")
    return numbers


def _read_numbers(path: Path) -> tuple[float, ...]:
    content = read_small_file(path, _MAX_TARGET_BYTES)
    if path.suffix == ".npy":
        import numpy as np

        return tuple(float(number) for number in np.load(io.BytesIO(content), allow_pickle=False).ravel())
    numbers = json.loads(content)
    if not isinstance(numbers, list) or any(isinstance(number, bool | str) for number in numbers):
        raise ValueError("no list of numbers")
    return tuple(float(number) for number in numbers)


def _expand(given: str) -> list[str]:
    if is_url(given):
        return [given]
    kind = kind_of(Path(given))
    if kind == "file":
        return [given]
    found = sorted(name for name in glob.glob(given, recursive=True) if kind_of(Path(name)) == "file")
    if kind == "missing" and found:
        return found
    raise BadUsage(f"weights {given}: {_not_weights(given, kind)}")


def _not_weights(given: str, kind: str) -> str:
    if kind == "folder":
        return "this is a folder: give its files, as in FOLDER/*.safetensors"
    if kind != "missing":
        return f"this is a {kind}: weights are read more than once, so save them as a file first"
    return "no file has such a name" if glob.has_magic(given) else "there is no such file"
