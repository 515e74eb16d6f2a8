"""What parent and worker say to each other: tiny frozen values, each pickled behind its length.

The parent speaks first (`Configure`); the worker answers `Ready` once its self-test has passed. Every
`Evaluate` is answered by `Accepted`, then `Loaded`, a `BatchDone` for each batch, and exactly one of
`Finished`, `Stopped` or `Failed`. Heartbeats come in between, whatever else the worker is doing.
"""

import io
import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any

from workers.errors import WorkerError
from workers.types import BatchScore, EvalJob, WeightsId, WorkerConfig

# -- to the worker


@dataclass(frozen=True, slots=True)
class Configure:
    """Who the worker is to be; the first message of all."""

    config: WorkerConfig
    heartbeat_seconds: float


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the batches [start, stop) of a job."""

    task_id: int
    job: EvalJob
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Nobody wants this task any more."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Prefetch:
    """This job comes next: load its weights meanwhile, if there is room."""

    job: EvalJob


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Prove again that you compute rightly, with the small evaluation."""


ToWorker = Configure | Evaluate | Stop | Prefetch | SelfTest

# -- from the worker


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The process runs; whether its work advances is told by `progress` alone."""

    progress: int = 0
    """Rises whenever the work advances: a layer of a batch, a piece of the weights."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The self-test passed; the first of a process has a large evaluation too."""

    device_name: str
    versions: dict[str, str]


@dataclass(frozen=True, slots=True)
class SelfTestFailed:
    """The device computes wrongly, or not at all; the parent ends the process, and whatever it has in hand."""

    detail: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """From here on the task is in the worker's hands: its death is one during this task."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights lie on the device."""

    task_id: int
    load_seconds: float
    """0.0 when they were resident."""


@dataclass(frozen=True, slots=True)
class BatchDone:
    """The numbers of one batch of a task."""

    task_id: int
    score: BatchScore


@dataclass(frozen=True, slots=True)
class Finished:
    """Every batch of the task is done."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The task was given up, as asked."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The task came to an end that is no result."""

    task_id: int
    error: WorkerError


@dataclass(frozen=True, slots=True)
class Resident:
    """Whose weights lie on the device now."""

    weights: frozenset[WeightsId]


FromWorker = (
    Heartbeat
    | Ready
    | SelfTestFailed
    | Accepted
    | Loaded
    | BatchDone
    | Finished
    | Stopped
    | Failed
    | Resident
)

# -- the frame

_LENGTH = struct.Struct("!I")
MAX_MESSAGE_BYTES = 16 << 20
"""Of what a worker says: a batch's scores in every detail take less than 1 MiB of it."""
_MESSAGE_MODULES = {"workers.messages", "workers.types", "workers.errors"}
_ARRAY_PARTS = {
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),
}


def encode(message: ToWorker | FromWorker) -> bytes:
    """The message as it travels: the pickle's length in 4 bytes, big-endian, then the pickle."""
    payload = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
    return _LENGTH.pack(len(payload)) + payload


class _Unpickler(pickle.Unpickler):
    """Builds messages and nothing else: a worker that a stranger's weights took over is not believed more."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ARRAY_PARTS:
            return super().find_class(module, name)
        if module in _MESSAGE_MODULES and "." not in name:  # no way through what the module imports
            found = super().find_class(module, name)
            if isinstance(found, type) and found.__module__ == module:
                return found
        raise pickle.UnpicklingError(f"a worker sent a {module}.{name}")


class Decoder:
    """Cuts a stream of bytes, as they come, into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[FromWorker]:
        """The messages that `data` completes. Raises UnpicklingError for anything else, or for too long a one."""
        self._buffer += data
        messages = []
        while len(self._buffer) >= _LENGTH.size:
            length = _LENGTH.unpack_from(self._buffer)[0]
            if length > MAX_MESSAGE_BYTES:
                raise pickle.UnpicklingError(f"a worker announced a message of {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(_Unpickler(io.BytesIO(self._buffer[_LENGTH.size : end])).load())
            del self._buffer[:end]
        return messages


def receive(connection: socket.socket) -> ToWorker | None:
    """The next message, waiting for it; None when the other side is gone."""
    header = _receive_exactly(connection, _LENGTH.size)
    payload = _receive_exactly(connection, _LENGTH.unpack(header)[0]) if header else b""
    message: ToWorker | None = pickle.loads(payload) if payload else None
    return message


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
