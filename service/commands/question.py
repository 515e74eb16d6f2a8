"""What a trainer asks: these candidates, on this held-out data, with these seeds. Made from what the shell gives."""

import glob
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from service.commands.file_state import FileChanged, FileState, state_of
from service.competition import parse_decryption_key
from service.errors import EmptyData, InvalidKey

NUM_SEEDS = 1 << 64
STDIN = "-"
NO_KEY = "none"
"""In a list of keys: these weights are not encrypted."""


class BadUsage(Exception):
    """The command line asks for something that cannot be done; the message says what to do instead."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One set of weights."""

    weights: str
    """A path or a URL, as it was given."""
    key: bytes | None = field(default=None, repr=False)
    """32 bytes, or None for weights that are not encrypted."""

    @property
    def is_url(self) -> bool:
        return is_url(self.weights)

    @property
    def name(self) -> str:
        """What may be shown and kept: a URL without user, password and query, which may let others in."""
        if not self.is_url:
            return self.weights
        parts = urlsplit(self.weights)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One file of held-out data."""

    name: str
    """As it was given; "-" for standard input."""
    path: Path
    size: int
    """Bytes, at least 1."""
    state: FileState | None = field(default=None, repr=False)
    """When its size was taken."""

    def check_unchanged(self) -> None:
        """Raises FileChanged where it is no longer the file it was when the command began."""
        if state_of(self.path) != self.state:
            raise FileChanged(f"the data was changed while it was evaluated: {self.name}", blob="data")


@dataclass(frozen=True, slots=True)
class Question:
    """Each candidate is evaluated on each file with each seed."""

    candidates: tuple[Candidate, ...]
    data: tuple[HeldOut, ...]
    seeds: tuple[int, ...]
    target: tuple[float, ...] | None = field(default=None, repr=False)
    detail: bool = False
    """Whether the cross-entropy of every token is wanted too; it is the same for every seed."""

    @property
    def num_runs(self) -> int:
        """Evaluations of one candidate."""
        return len(self.data) * len(self.seeds)


def is_url(text: str) -> bool:
    """Whether weights are to be fetched, rather than read from a file."""
    return urlsplit(text).scheme.lower() in ("http", "https")


def parse_candidates(weights: Sequence[str], keys: Sequence[bytes | None]) -> tuple[Candidate, ...]:
    """Files, globs and URLs, with no key, one for all, or one for each in this order. Raises BadUsage."""
    names = [name for given in weights for name in _expand(given)]
    if len(keys) not in (0, 1, len(names)):
        raise BadUsage(f"{len(keys)} keys for {len(names)} weights files: give one key, or one for each")
    one_each = list(keys) * len(names) if len(keys) == 1 else keys or [None] * len(names)
    return tuple(Candidate(name, key) for name, key in zip(names, one_each, strict=True))


def parse_keys(keys: Sequence[str], key_files: Sequence[Path]) -> list[bytes | None]:
    """Keys in Base58 (or "none"), from flags or from files. Raises BadUsage, which does not say what they were."""
    if keys and key_files:
        raise BadUsage("--key and --key-file exclude each other: put every key into a file of its own")
    try:
        texts = list(keys) or [path.read_text().strip() for path in key_files]
    except (OSError, UnicodeDecodeError) as error:
        raise BadUsage(f"a key file cannot be read: {_reason(error)}") from None
    return [None if text == NO_KEY else parse_key(text) for text in texts]


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key in Base58. Raises BadUsage."""
    try:
        return parse_decryption_key(text)
    except InvalidKey as error:
        raise BadUsage(f"{error.detail}: copy it once more, all 43 or 44 characters of it") from None


def find_data(given: str, spool: Path) -> tuple[HeldOut, ...]:
    """A file, every file of a folder (below it too, hidden ones left out), or standard input, copied to `spool`.

    Raises BadUsage, or EmptyData.
    """
    if given == STDIN:
        if sys.stdin.isatty():
            raise BadUsage("--data - reads standard input, which is the keyboard: pipe a file into it")
        spool.write_bytes(sys.stdin.buffer.read())
        return (_held_out(STDIN, spool),)
    path = Path(given)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _is_hidden(file, path))
        if not files:
            raise BadUsage(f"--data {given}: there is no file in this folder")
        return tuple(_held_out(str(file), file) for file in files)
    if not path.is_file():
        raise BadUsage(f"--data {given}: there is no such file or folder")
    return (_held_out(given, path),)


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
    except (OSError, ValueError, TypeError, RecursionError) as error:
        reason = (
            _reason(error)
            if isinstance(error, OSError)
            else "it is neither a JSON list of numbers nor a .npy file"
        )
        raise BadUsage(f"--target {path}: {reason}") from None
    if embedding_dim is not None and len(numbers) != embedding_dim:
        raise BadUsage(f"--target {path}: it has {len(numbers)} numbers, an embedding has {embedding_dim}")
    if not all(map(math.isfinite, numbers)) or not any(numbers):
        raise BadUsage(f"--target {path}: it is zero, or holds a number that is not finite")
    return numbers


def _read_numbers(path: Path) -> tuple[float, ...]:
    if path.suffix == ".npy":
        import numpy as np

        return tuple(float(number) for number in np.load(path, allow_pickle=False).ravel())
    numbers = json.loads(path.read_text())
    if not isinstance(numbers, list) or any(isinstance(number, bool | str) for number in numbers):
        raise ValueError("no list of numbers")
    return tuple(float(number) for number in numbers)


def _expand(given: str) -> list[str]:
    if is_url(given):
        return [given]
    if Path(given).is_file():
        return [given]
    found = sorted(name for name in glob.glob(given, recursive=True) if Path(name).is_file())
    if not found:
        what = "is a folder, not a weights file" if Path(given).is_dir() else "there is no such file"
        raise BadUsage(f"--weights {given}: {what}")
    return found


def _held_out(name: str, path: Path) -> HeldOut:
    state = state_of(path)
    if state is None:
        raise BadUsage(f"--data {name}: there is no such file")
    if state.size == 0:
        raise EmptyData(f"the data is empty: {name}", fault="client", blob="data")
    return HeldOut(name, path, state.size, state)


def _is_hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not text"
