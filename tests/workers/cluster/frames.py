"""Frames as a broken or hostile node would send them: right ones, of which some bytes or fields were changed."""

import dataclasses
import json
import random
import types
import typing
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers.errors import OutOfMemory, WorkerError
from workers.message_codec import encode

_ODD: list[Any] = [
    *(None, True, -1, 0, 1 << 70, 1.5, float("nan"), "", "AAAA", [], {}, [[]], {"": None}, "\udcff"),
    *([["os.system", {}]], ["WorkerError", "x"], {"__class__": "x"}, "é" * 40),
]


def examples(allowed: Any) -> list[Any]:
    """One message of each class of the union, or of the one class."""
    return [_example(kind) for kind in typing.get_args(allowed) or (allowed,)]


def mutations(source: random.Random, allowed: Any, number: int) -> Iterator[bytes]:
    """So many frames."""
    frames = [encode(message) for message in examples(allowed)]
    ways = (_change_bytes, _change_a_field, _cut_or_join, _any_bytes)
    for _ in range(number):
        yield source.choice(ways)(source, source.choice(frames))


def _change_bytes(source: random.Random, frame: bytes) -> bytes:
    changed = bytearray(frame)
    for _ in range(source.randint(1, 3)):
        changed[source.randrange(len(changed))] = source.randrange(256)
    return bytes(changed)


def _change_a_field(source: random.Random, frame: bytes) -> bytes:
    name, content = json.loads(frame[4:])
    if isinstance(content, dict) and content and source.random() < 0.9:
        content[source.choice(list(content))] = source.choice(_ODD)
    else:
        content = source.choice(_ODD)
    payload = json.dumps([name, content]).encode()
    return len(payload).to_bytes(4, "big") + payload


def _cut_or_join(source: random.Random, frame: bytes) -> bytes:
    return frame * 2 if source.random() < 0.3 else frame[source.randrange(len(frame)) :]


def _any_bytes(source: random.Random, frame: bytes) -> bytes:
    return source.randbytes(source.randrange(200))


def _example(kind: Any) -> Any:
    simple = {int: 3, str: "text", bool: True, float: 0.5, bytes: b"\0\xff", types.NoneType: None}
    if kind in simple:
        return simple[kind]
    if kind is WorkerError:
        return OutOfMemory("too little")
    if kind == NDArray[np.float32]:
        return np.ones(2, np.float32)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _example(hint) for name, hint in hints.items()})  # type: ignore[operator]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is dict:
        return {"key": _example(arguments[1])}
    if origin is frozenset:
        return frozenset({_example(arguments[0])})
    if origin is tuple:
        return tuple(_example(each) for each in arguments if each is not ...)
    return _example(arguments[0]) if origin is types.UnionType else arguments[0]
