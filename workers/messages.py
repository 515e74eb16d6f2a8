"""What parent and worker send to each other: tiny frozen values; `message_codec` says how they travel.

The parent begins (`Configure`); the worker answers `Ready` once its self-test has passed. Every
`Evaluate` is answered by `Accepted`, then `Loaded`, a `BatchDone` for each batch (`BatchAdvanced` before it while one
takes long), and exactly one of `Finished`, `Stopped` or `Failed`. Heartbeats come in between, whatever else the
worker is doing.
"""

from dataclasses import dataclass

from workers.errors import WorkerError
from workers.types import BatchScore, EvalJob, WeightsId, WorkerConfig, WorkerMemory

# -- to the worker


@dataclass(frozen=True, slots=True)
class Configure:
    """What the worker works on and how; the first message of all."""

    config: WorkerConfig
    heartbeat_seconds: float


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Evaluate the batches [start, stop) of a job, or the pieces [start, stop) of a job that has pieces."""

    task_id: int
    job: EvalJob
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Give up this task: it is no longer wanted."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Prefetch:
    """This job is next: load its weights meanwhile, if there is memory for them."""

    job: EvalJob


@dataclass(frozen=True, slots=True)
class SelfTest:
    """Show again, with the small evaluation, that the device computes rightly."""


ToWorker = Configure | Evaluate | Stop | Prefetch | SelfTest

# -- from the worker


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The process runs; whether its work advances is shown by `progress` alone."""

    progress: int = 0
    """Rises whenever the work advances: a layer of a batch, a piece of the weights."""
    memory: WorkerMemory | None = None
    """None until the first self-test has passed."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The self-test passed; the first of a process has a large evaluation too."""

    device_name: str
    versions: dict[str, str]
    memory_bytes: int = 0
    """All that the device has."""


@dataclass(frozen=True, slots=True)
class SelfTestFailed:
    """The device computes wrongly, or not at all; the parent ends the process, with any task it has."""

    detail: str


@dataclass(frozen=True, slots=True)
class Accepted:
    """The worker begins the task: if it dies from here on, it died during this task."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Loaded:
    """The weights lie on the device."""

    task_id: int
    load_seconds: float
    """0.0 when they were resident."""


@dataclass(frozen=True, slots=True)
class BatchAdvanced:
    """How far a batch is that takes long."""

    task_id: int
    index: int
    fraction: float

    def __post_init__(self) -> None:
        """Raises ValueError for what is no fraction, as a malformed message may hold."""
        if not 0.0 <= self.fraction <= 1.0:
            raise ValueError("not a number from 0 to 1")


@dataclass(frozen=True, slots=True)
class BatchDone:
    """The numbers of one batch, or of one piece, of a task."""

    task_id: int
    score: BatchScore


@dataclass(frozen=True, slots=True)
class Finished:
    """Every batch of the task is done."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """The task was given up, as requested."""

    task_id: int


@dataclass(frozen=True, slots=True)
class Failed:
    """The task has no result."""

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
    | BatchAdvanced
    | BatchDone
    | Finished
    | Stopped
    | Failed
    | Resident
)
