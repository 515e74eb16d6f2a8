"""How messages travel: a length of 4 bytes, then JSON that is read as the types of the message say, and no other.

Both sides read in this one way. A worker that a stranger's weights took over can send well-formed messages and
nothing else, and the parent's keys are read as bytes and nothing else. What is received never appears in an error.
"""

import base64
import dataclasses
import functools
import json
import math
import socket
import struct
import types
import typing
from typing import Any

import numpy as np
from numpy.typing import NDArray

from workers import errors
from workers.messages import FromWorker, ToWorker

MAX_MESSAGE_BYTES = 2 << 20
"""More than the largest messages: the scores of a batch in every detail, and the pieces of a job in Base64."""

_LENGTH = struct.Struct("!I")
_Array = NDArray[np.float32]
_ERRORS: dict[str, type[errors.WorkerError]] = {
    kind.__name__: kind
    for kind in (
        errors.DecryptionFailed,
        errors.WeightsInvalid,
        errors.EmptyData,
        errors.NonFiniteResult,
        errors.FileUnreadable,
        errors.OutOfMemory,
    )
}
"""What a worker may say of a task; everything else is for the parent to decide."""


class MalformedMessage(Exception):
    """What was received is no message."""


def encode(message: Any) -> bytes:
    """The message, a dataclass, as it travels."""
    payload = json.dumps([type(message).__name__, message], default=_to_json).encode()
    return _LENGTH.pack(len(payload)) + payload


class Decoder:
    """Cuts a stream of bytes, as they arrive, into messages of a union of classes: by default those of a worker."""

    def __init__(self, allowed: Any = FromWorker) -> None:
        self._allowed = allowed
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The messages that `data` completes. Raises MalformedMessage for anything else, or for too long a one."""
        self._buffer += data
        decoded = []
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _checked_length(self._buffer)
            if len(self._buffer) < end:
                break
            decoded.append(_decode(bytes(self._buffer[_LENGTH.size : end]), self._allowed))
            del self._buffer[:end]
        return decoded


def receive(connection: socket.socket) -> ToWorker | None:
    """The next message, waiting for it; None when the other side is gone. Raises MalformedMessage."""
    header = _receive_exactly(connection, _LENGTH.size)
    payload = _receive_exactly(connection, _checked_length(header)) if header else b""
    message: ToWorker | None = _decode(payload, ToWorker) if payload else None
    return message


def _checked_length(header: bytes | bytearray) -> int:
    length: int = _LENGTH.unpack_from(header)[0]
    if length > MAX_MESSAGE_BYTES:
        raise MalformedMessage(f"a message of {length} bytes was announced")
    return length


def _receive_exactly(connection: socket.socket, size: int) -> bytes:
    """`size` bytes, or none at all when the other side closes before."""
    received = bytearray()
    while len(received) < size:
        try:
            part = connection.recv(size - len(received))
        except ConnectionError:
            return b""
        if not part:
            return b""
        received += part
    return bytes(received)


def _to_json(value: Any) -> Any:
    """What `json` cannot write by itself."""
    match value:
        case bytes():
            return base64.b64encode(value).decode()
        case np.ndarray():
            return [value.shape, value.astype("<f4", copy=False).tobytes()]
        case frozenset():
            return list(value)
        case errors.WorkerError():
            return [type(value).__name__, value.detail]
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _decode(payload: bytes, allowed: Any) -> Any:
    try:
        name, content = json.loads(payload)
        kind = _classes(allowed)[name]
        return _read(kind, content)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        pass  # such an error may hold what was received, so the next one is not raised in its context
    raise MalformedMessage("what was received is no message")


def _read(kind: Any, value: Any) -> Any:
    """The JSON value as one of this type. Raises one of the errors that `_decode` expects for any other."""
    if kind in (int, str, bool) or kind is types.NoneType:
        return _of_type(kind, value)
    if kind is float:
        return float(value if type(value) is int else _of_type(float, value))
    if kind is bytes:
        return base64.b64decode(_of_type(str, value), validate=True)
    if kind is errors.WorkerError:
        name, detail = value
        return _ERRORS[name](_of_type(str, detail))
    if kind == _Array:
        return _read_array(*value)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value)
    return _read_generic(typing.get_origin(kind), typing.get_args(kind), value)


def _read_dataclass(kind: Any, value: Any) -> Any:
    hints = _hints(kind)
    if _of_type(dict, value).keys() != hints.keys():
        raise KeyError
    return kind(**{name: _read(hint, value[name]) for name, hint in hints.items()})


def _read_generic(origin: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    """A Literal, an optional, or a collection."""
    if origin is typing.Literal:
        return arguments[arguments.index(value)]
    if origin is types.UnionType:
        return None if value is None else _read(arguments[0], value)
    if origin is frozenset:
        return frozenset(_read(arguments[0], member) for member in _of_type(list, value))
    if origin is tuple and arguments[-1] is ...:
        return tuple(_read(arguments[0], member) for member in _of_type(list, value))
    if origin is tuple:
        members = zip(arguments, _of_type(list, value), strict=True)
        return tuple(_read(kind, member) for kind, member in members)
    if origin is dict:
        return {key: _read(arguments[1], member) for key, member in _of_type(dict, value).items()}
    raise TypeError


def _read_array(shape: Any, data: Any) -> NDArray[np.float32]:
    sizes = [_of_type(int, size) for size in _of_type(list, shape)]
    array = np.frombuffer(_read(bytes, data), dtype="<f4")
    if min(sizes, default=0) < 0 or math.prod(sizes) != array.size:
        raise ValueError
    return array.reshape(sizes)


def _of_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


@functools.cache
def _classes(allowed: Any) -> dict[str, Any]:
    """The classes of a union, or the one class, by name."""
    return {kind.__name__: kind for kind in typing.get_args(allowed) or (allowed,)}


@functools.cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)
