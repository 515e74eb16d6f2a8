"""What the service and its connector, the process that talks to Ray, send to each other.

They travel as all messages do (see `workers.message_codec`). A session is one worker process from its spawn to its
end; its number is never used again, so that what belongs to an earlier one is told apart and dropped.
"""

from dataclasses import dataclass, field

from workers.types import WorkerConfig

LOCAL = "local"
"""In place of an address: a private cluster on this machine."""


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """How a cluster is joined, and what its nodes are used for; the first message to the connector."""

    address: str
    """HOST:PORT of Ray's head, or LOCAL: a private one on this machine, for as long as the service runs."""
    devices: str
    """As the setting: a comma list of auto, cpu and cuda; each node is asked for them."""
    allow_open: bool
    """Whether a cluster may be used that asks for no token."""
    data_dir: str
    """Folder on each node, in which each has one of its own for the files it is sent."""
    data_max_bytes: int
    """Most bytes of it, per node; least recently used files go first."""
    entry_module: str
    """What a worker process runs."""
    silence_seconds: float = 10.0
    """Without an answer of a device's actor, after which it counts as lost, as it does when its node's raylet was
    stopped for so long."""
    fence_seconds: float = 30.0
    """Without a word of the head, after which an actor ends its worker process."""


@dataclass(frozen=True, slots=True)
class FileToSend:
    """A file of the head's that a job needs."""

    path: str
    checksum: str
    """Blake2b-256, Base58."""
    size: int


# -- to the connector


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a worker process for this device; its first message of its own is its frames."""

    session: int
    device_id: str
    config: WorkerConfig


@dataclass(frozen=True, slots=True)
class Relay:
    """Frames for the worker, as they are."""

    session: int
    frames: bytes = field(repr=False)  # a key may be in it


@dataclass(frozen=True, slots=True)
class RelayJob:
    """Frames that name files: they are relayed once the device's node has these."""

    session: int
    task_id: int
    """0 for weights that are loaded ahead: it does not matter if they are not."""
    frames: bytes = field(repr=False)  # a key may be in it
    weights: FileToSend
    data: FileToSend | None


@dataclass(frozen=True, slots=True)
class StopJob:
    """The task is no longer wanted: relay this at once, and wait for no file any more."""

    session: int
    task_id: int
    frames: bytes = field(repr=False)  # a key may be in it


@dataclass(frozen=True, slots=True)
class EndProcess:
    """End the worker process of the session: SIGTERM, and SIGKILL after the grace; 0 s: SIGKILL at once."""

    session: int
    grace_seconds: float


ToConnector = ClusterConfig | Spawn | Relay | RelayJob | StopJob | EndProcess

# -- from the connector


@dataclass(frozen=True, slots=True)
class Alive:
    """The connector runs; sent all the time."""


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """There is no cluster to work with; the connector ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Connected:
    """The cluster is joined; what its nodes have follows."""

    num_devices: int
    """That are wanted of its nodes now; each of them joins or is refused."""


@dataclass(frozen=True, slots=True)
class DeviceJoined:
    """A device of a node whose hello was accepted."""

    device_id: str
    node: str
    device: str
    """For the worker: its actor sees one GPU alone, so "cuda:0"; or "cpu"."""
    device_on_node: str
    """As the node counts them."""
    num_on_node: int
    """Workers among which the node's processors and memory are divided."""
    num_cores: int
    free_memory_bytes: int
    build: str
    """Of torch, with which it computes."""
    data_dir: str
    """Where the node keeps files."""


@dataclass(frozen=True, slots=True)
class DeviceLeft:
    """Its node is gone, or the device is no longer wanted."""

    device_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class DeviceRefused:
    """The device is not used, or not yet."""

    device_id: str
    node: str
    device: str
    reason: str


@dataclass(frozen=True, slots=True)
class Spawned:
    """The worker process of the session runs."""

    session: int
    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """There is no process for the session."""

    session: int
    reason: str


@dataclass(frozen=True, slots=True)
class Frames:
    """What the worker sent, as it is."""

    session: int
    frames: bytes = field(repr=False)  # a key may be in it


@dataclass(frozen=True, slots=True)
class ProcessStopped:
    """The worker sends nothing because its process was stopped (SIGSTOP); frames after it say that it goes on."""

    session: int


@dataclass(frozen=True, slots=True)
class FileMoved:
    """A further piece of a file has reached the node, for a job of this session."""

    session: int


@dataclass(frozen=True, slots=True)
class FileSent:
    """A node has a further file, verified."""

    node: str
    num_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class JobUndelivered:
    """The node could not get or keep the files of the task."""

    session: int
    task_id: int
    reason: str
    disk_is_full: bool


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """Nothing more comes from the worker."""

    session: int
    lost: str
    """How its actor or node was lost; empty when the worker closed its pipe."""


@dataclass(frozen=True, slots=True)
class ProcessEnded:
    """The process is reaped, or given up."""

    session: int
    status: int
    was_ended_here: bool
    is_stuck: bool


FromConnector = (
    Alive
    | ConnectionFailed
    | Connected
    | DeviceJoined
    | DeviceLeft
    | DeviceRefused
    | Spawned
    | SpawnFailed
    | Frames
    | ProcessStopped
    | FileMoved
    | FileSent
    | JobUndelivered
    | SessionClosed
    | ProcessEnded
)
