"""What a submitter asks: the models and targets of two JSON files."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.cli.input_file import read_small_file, reason_of
from service.cli.urls import is_url
from service.cli.usage import BadUsage

_MAX_FILE_BYTES = 256 << 20
_MAX_SEED = 2**64 - 1

Id = int | str


@dataclass(frozen=True, slots=True)
class NamedModel:
    """One entry of the file of models; only its shape is known to be right."""

    id: Id
    url: str
    """Of the weights, or their path."""
    checksum: str | None = None
    size: int | None = None
    decryption_key: str | None = field(default=None, repr=False)
    """In Base58."""


@dataclass(frozen=True, slots=True)
class NamedTarget:
    """One entry of the file of targets."""

    id: Id
    embedding: tuple[float, ...] = field(repr=False)
    distance_threshold: float
    model_ids: tuple[Id, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """Each piece is evaluated with each model and the seed, and measured against each target."""

    models: tuple[NamedModel, ...]
    targets: tuple[NamedTarget, ...]
    seed: int


def refuse_files(question: Question) -> None:
    """A service reads none of this machine. Raises BadUsage."""
    for model in question.models:
        if not is_url(model.url):
            raise BadUsage(f"the service at --url cannot read {model.url}: give every model an http(s) URL")


def read_question(models: Path, targets: Path | None, seed: int) -> Question:
    """Raises BadUsage, which names the file and the entry that is wrong, and never what it holds."""
    if not 0 <= seed <= _MAX_SEED:
        raise BadUsage("--seed lies in 0 .. 2^64 - 1")
    found = _Entries("--models", models)
    named = tuple(
        NamedModel(
            id=entry.id,
            url=entry.text("url"),
            checksum=entry.optional_text("checksum"),
            size=entry.optional_size("size"),
            decryption_key=entry.optional_text("decryption_key"),
        )
        for entry in found.entries
    )
    if not named:
        raise BadUsage(f"--models {models}: there is no model in it")
    ids = [model.id for model in named]
    return Question(named, () if targets is None else _read_targets(targets, ids), seed)


def _read_targets(path: Path, ids: Sequence[Id]) -> tuple[NamedTarget, ...]:
    targets = []
    for entry in _Entries("--targets", path).entries:
        wanted = entry.content.get("model_ids")
        if wanted is None:
            wanted = ids
        if not isinstance(wanted, list) or not wanted or not all(name in ids for name in wanted):
            raise entry.wrong("model_ids", "a list of ids of the models")
        targets.append(
            NamedTarget(
                id=entry.id,
                embedding=entry.numbers("embedding"),
                distance_threshold=entry.number("distance_threshold"),
                model_ids=tuple(wanted),
            )
        )
    return tuple(targets)


class _Entries:
    """A file that holds a list of objects."""

    def __init__(self, flag: str, path: Path) -> None:
        try:
            content = json.loads(read_small_file(path, _MAX_FILE_BYTES))
        except (OSError, BadUsage) as error:
            raise BadUsage(f"{flag} {path}: {reason_of(error)}") from None
        except (ValueError, RecursionError):
            raise BadUsage(f"{flag} {path}: this is not JSON") from None
        if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
            raise BadUsage(f"{flag} {path}: this is not a JSON list of objects")
        self.entries = [_Entry(f"{flag} {path}", i, entry) for i, entry in enumerate(content)]
        ids = [entry.id for entry in self.entries]
        if len(set(ids)) < len(ids):
            raise BadUsage(f"{flag} {path}: two entries have the same id")


class _Entry:
    def __init__(self, where: str, position: int, content: Mapping[str, Any]) -> None:
        self._where = f"{where}: entry {position}"
        self.content = content
        self.id: Id = position if content.get("id") is None else content["id"]
        if not isinstance(self.id, int | str) or isinstance(self.id, bool):
            raise self.wrong("id", "a text or a whole number")

    def wrong(self, name: str, expected: str) -> BadUsage:
        return BadUsage(f"{self._where}: {name} must be {expected}")

    def text(self, name: str) -> str:
        value = self.content.get(name)
        if not isinstance(value, str) or not value:
            raise self.wrong(name, "a text")
        return value

    def optional_text(self, name: str) -> str | None:
        return None if self.content.get(name) is None else self.text(name)

    def optional_size(self, name: str) -> int | None:
        value = self.content.get(name)
        if value is not None and (type(value) is not int or value < 0):
            raise self.wrong(name, "a number of bytes")
        return value

    def number(self, name: str) -> float:
        value = self.content.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise self.wrong(name, "a finite number")
        return float(value)

    def numbers(self, name: str) -> tuple[float, ...]:
        values = self.content.get(name)
        if not isinstance(values, list) or not values:
            raise self.wrong(name, "a list of numbers")
        if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
            raise self.wrong(name, "a list of finite numbers")
        return tuple(map(float, values))
