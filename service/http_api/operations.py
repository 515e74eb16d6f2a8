"""What /health, /ready and /info respond, as JSON."""

from typing import Any, Literal

from service.http_api.problems import Problem
from service.http_api.schema import Schema


class Health(Schema):
    """The process lives."""

    status: Literal["ok"] = "ok"
    """Always ok: a process that is dead does not respond."""


class Device(Schema):
    """One worker."""

    device: str
    """`cpu`, `cuda:0`."""
    device_name: str
    """The vendor's name for it; of a CPU also the instruction set and the threads, which decide the last bits."""
    node: str
    """Name of the machine of a cluster that it belongs to; empty for the service's own."""
    ready: bool
    """It has recently passed its self-test."""
    busy: bool
    """It has a job."""
    restarts: int
    """How often its process was started again."""
    trouble: str
    """Why it is unreliable or out of service; empty when nothing is wrong."""


class Readiness(Schema):
    """Whether requests are accepted, and by which workers."""

    status: Literal["ready", "draining", "no-worker", "no-storage"]
    """draining: the service is stopping; no-worker: none passed its self-test; no-storage: the disk does not work."""
    devices: list[Device]
    """One for each worker."""


class NotReady(Problem):
    """Why requests are not accepted now."""

    devices: list[Device]
    """One for each worker."""


class RequestLimits(Schema):
    """Limits of one request."""

    max_body_bytes: int
    """Length of a request's body."""
    max_data_bytes: int
    """Length of the data of one evaluation."""
    max_model_bytes: int
    """Length of one weights file."""
    max_models: int
    """Models of one competition or screen."""
    max_pieces: int
    """Pieces of data of one screen."""
    max_targets: int
    """Targets of one screen."""
    max_screen_body_bytes: int
    """Length of the body of a screen."""
    queue_size: int
    """Requests that may wait or run at once; one more is refused with queue-full."""
    request_timeout_seconds: float
    """How long one request may take."""


class Info(Schema):
    """The architecture, limits, devices and versions of this service."""

    version: str
    """Of this service."""
    architecture_version: str
    """Version of the network's architecture."""
    architecture: dict[str, Any]
    """The dimensions of the models it evaluates, and how data is cut and scored."""
    architecture_name: str
    """`network` for the network's own, `small` for its small model, another for each other one."""
    precision: str
    """float32 unless the service was started with another."""
    limits: RequestLimits
    """The most that one request may ask for."""
    devices: list[Device]
    """One for each worker."""
    versions: dict[str, str]
    """Of the packages that make the numbers."""
