"""What crosses the boundary to the workers: small frozen values of paths, strings and numbers, by value."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from workers.architectures import CURRENT_VERSION

Precision = Literal["float32", "tf32", "bf16", "float32-split"]
CancelCheck = Callable[[], None]
"""Called each time the work advances, from the thread that works; it may raise to stop the work."""
OnFraction = Callable[[float], None]
"""Called with how far a batch is, 0 to 1, from the thread that works."""
MAX_PIECES_BYTES = 512 << 10
"""Of all pieces of one job together: they travel in its message."""
MAX_POINTS_ALONG = 512
"""Of one result, along its data."""
WeightsId = tuple[str, str, str]
"""Architecture version, checksum of the file, digest of the key: the same weights on a device."""


def ignore_fraction(fraction: float) -> None:
    """For callers that do not want to know."""


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker process is started with; the same for all workers of a pool, but for the device."""

    device: str
    """A torch device: "cpu", "cuda:0"."""
    small_model: bool = False
    """Evaluate the network's own small architecture in place of full V1."""
    architecture: str = ""
    """JSON of another one, in place of both: `ArchitectureConfig.to_json`."""
    precision: Precision = "float32"
    num_threads: int | None = None
    """CPU threads of this worker; None leaves the choice to torch."""
    num_on_device: int = 1
    """Workers that share the device, this one included."""
    memory_budget_bytes: int | None = None
    """Device memory that this worker's resident weights may take; None: its part of a share of what is free at the
    start."""


class DeviceKind(NamedTuple):
    """Devices of one kind give one result to the bit."""

    device: str
    """"cpu" or "cuda"."""
    name: str
    """What the vendor calls it; of a CPU also what else decides its bits."""
    build: str = ""
    """Of torch, where the machines of a cluster may differ; empty for this machine."""


@dataclass(frozen=True, slots=True)
class EvalJob:
    """One model on one data set: what a pool is asked to evaluate."""

    weights_path: str
    """The file as published: ciphertext when there is a key."""
    weights_checksum: str
    """Blake2b-256 of that file, Base58: by it a worker knows whether it holds these weights already."""
    data_path: str
    data_size: int
    """Bytes, at least 1."""
    seed: int
    """0 .. 2**64 - 1."""
    decryption_key: bytes | None = field(default=None, repr=False)
    """32 bytes, or None for weights that are not encrypted."""
    architecture_version: str = CURRENT_VERSION
    data_checksum: str = ""
    """Blake2b-256 of the data, Base58: the same data may lie at another path next time. Empty: its path names it."""
    weights_size: int | None = None
    """Bytes of the file as published, if known: a file of another size here is this machine's trouble."""
    detail: bool = False
    """Whether the cross-entropy of every token is wanted too."""
    pieces: tuple[bytes, ...] = field(default=(), repr=False)
    """Several small data sets, each with a result of its own, in place of the one at `data_path`."""

    @classmethod
    def of_pieces(
        cls,
        pieces: tuple[bytes, ...],
        *,
        weights_path: str,
        weights_checksum: str,
        seed: int,
        weights_size: int | None = None,
        decryption_key: bytes | None = None,
        architecture_version: str = CURRENT_VERSION,
    ) -> "EvalJob":
        """One model on several small data sets, for `WorkerPool.evaluate_pieces`.

        Each piece has 1 byte at least and makes one batch at most; together they have MAX_PIECES_BYTES at most.
        """
        digest = hashlib.blake2b(digest_size=32)
        for piece in pieces:
            digest.update(hashlib.blake2b(piece, digest_size=32).digest())
        return cls(
            weights_path=weights_path,
            weights_checksum=weights_checksum,
            weights_size=weights_size,
            data_path="",
            data_size=sum(map(len, pieces)),
            data_checksum=digest.hexdigest(),
            seed=seed,
            decryption_key=decryption_key,
            architecture_version=architecture_version,
            pieces=pieces,
        )

    @property
    def weights_id(self) -> WeightsId:
        """What a device holds once it has loaded this job's weights. Another key gives other weights."""
        key_digest = hashlib.blake2b(self.decryption_key or b"", digest_size=16).hexdigest()
        return self.architecture_version, self.weights_checksum, key_digest


@dataclass(frozen=True, slots=True)
class EvalProgress:
    """How far an evaluation is; reported after every batch, and a few times a second while one takes long."""

    phase: Literal["queued", "loading", "evaluating"]
    batches_done: int
    num_batches: int
    batches_in_part: float = 0.0
    """What is done of batches that are being computed, as so many batches; it may fall where one begins again."""

    @property
    def fraction(self) -> float:
        """Of the evaluation, 0 to 1."""
        return (self.batches_done + self.batches_in_part) / self.num_batches


OnEvalProgress = Callable[[EvalProgress], None]


@dataclass(frozen=True, slots=True)
class BatchScore:
    """The numbers of one batch: depend on weights, data, seed and batch index alone."""

    index: int
    cross_entropy: float
    sig_reg: float
    """As the formula gives it, before the coefficient 0.02."""
    embedding: NDArray[np.float32]
    """[embedding_dim]: the mean representation of the batch."""
    attends_to_future: bool
    token_cross_entropy: NDArray[np.float32] | None = None
    """[sequences, tokens] in nats, 0 for padding; None unless the job asks for detail."""
    was_cut_smaller: bool = False
    """Computed in smaller pieces for lack of memory: the last bits may differ from those of other tries."""

    @property
    def is_finite(self) -> bool:
        """Whether neither the loss nor the embedding is NaN or infinite."""
        numbers = np.isfinite([self.cross_entropy, self.sig_reg])
        return bool(numbers.all() and np.isfinite(self.embedding).all())


@dataclass(frozen=True, slots=True)
class TaskTimes:
    """One worker's share of an evaluation; times in seconds since that was asked for, as its messages were received."""

    device: str
    start: int
    stop: int
    """The batches [start, stop) that it has done."""
    began: float
    """When the worker had accepted it."""
    ended: float
    """When its last message was received."""
    loaded: float | None = None
    """When the weights lay on the device; None if they never did."""
    load_seconds: float = 0.0
    """What the worker took to load them, by its own clock; 0.0 when they were resident."""
    node: str = ""
    """Name of the machine in a cluster that the worker ran on; empty for this machine."""


@dataclass(frozen=True, slots=True)
class EvalResult:
    """One model on one data set: what a pool answers."""

    loss: float
    cross_entropy: float
    sig_reg: float
    embedding: NDArray[np.float32]
    """[embedding_dim]"""
    attends_to_future: bool
    num_sequences: int
    num_batches: int
    precision: Precision
    device: str
    """The devices that took part, such as "cpu" or "cuda:0,cuda:1"."""
    load_seconds: float
    """0.0 when the weights were resident."""
    eval_seconds: float
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that made the numbers: torch, soma-arrgen."""
    device_name: str = ""
    """What the vendor calls the devices that took part, which are of one kind: see DeviceStatus."""
    was_cut_smaller: bool = False
    """Some of it was computed in smaller pieces for lack of memory: its last bits may differ from another try's."""
    token_cross_entropy: NDArray[np.float32] | None = field(default=None, repr=False)
    """[num_sequences, tokens] in nats, 0 for padding; None unless the job asks for detail."""
    tasks: tuple[TaskTimes, ...] = field(default=(), repr=False)
    """Each worker's share, in the order in which they were begun."""
    cross_entropy_along: tuple[float, ...] = field(default=(), repr=False)
    """Along the data: one for each batch, or, of more than MAX_POINTS_ALONG, the means of equally many (of fewer at the
    end). For people to look at: no other number is made of them. Empty where an earlier version has kept the result."""

    @property
    def kind(self) -> DeviceKind:
        """What it was computed on."""
        return DeviceKind(self.device.partition(":")[0], self.device_name)


@dataclass(frozen=True, slots=True)
class WorkerMemory:
    """What a worker takes of its device's memory, in bytes."""

    total: int
    """Of the device, or of the machine for a CPU."""
    used: int
    """By this worker's process: held by torch on a GPU, the resident set on a CPU."""
    weights: int
    """Of that, weights that stay loaded."""
    weights_limit: int
    """What they may take."""

    def __post_init__(self) -> None:
        """Raises ValueError for what is no number of bytes, as a malformed message may hold."""
        if not all(0 <= size < 1 << 63 for size in (self.total, self.used, self.weights, self.weights_limit)):
            raise ValueError("not a number of bytes")


@dataclass(frozen=True, slots=True)
class RunningTask:
    """What a worker has in hand: a range of batches of one evaluation."""

    weights_checksum: str
    phase: Literal["loading", "evaluating"]
    batch: int
    """The batch that it is at, counted from 0 over the whole evaluation."""
    start: int
    stop: int
    """Its share of the evaluation: the batches [start, stop)."""


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One worker as seen from outside."""

    device: str
    ready: bool
    """Has recently passed a real forward pass with known numbers."""
    busy: bool
    pid: int | None
    restarts: int
    device_name: str = ""
    """What the vendor calls it; of a CPU also what else decides its bits. Empty until it was ready once."""
    trouble: str = ""
    """Why it is not to be relied on now; empty when nothing is wrong."""
    node: str = ""
    """Name of the machine in a cluster that it runs on; empty for this machine."""
    versions: dict[str, str] = field(default_factory=dict)
    """Of the packages that make its numbers; empty until it was ready once."""
    self_test_age_seconds: float | None = None
    """Since a worker here last passed its self-test; None before the first time."""
    restarts_by_reason: dict[str, int] = field(default_factory=dict)
    """`restarts` by what ended the worker before, 0 included: the values of `workers.processes.worker_death.Cause`."""
    last_death: str = ""
    """How the worker before the present one ended, in words; empty before the first death."""
    memory: WorkerMemory | None = None
    """None while there is no worker that has reported it."""
    resident: frozenset[str] = frozenset()
    """Checksums of the weights that lie on the device."""
    task: RunningTask | None = None
    """None when it has nothing in hand."""

    @property
    def kind(self) -> DeviceKind:
        """What it computes on."""
        return DeviceKind(self.device.partition(":")[0], self.device_name)
