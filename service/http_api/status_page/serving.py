"""The first sentence of the page: would a request sent now be served, and if not, why, and what to do."""

from dataclasses import dataclass
from typing import Literal

from service.device_names import device_names
from service.errors import Draining, QueueFull
from service.jobs.database import FILE_NAME
from service.lifespan import Components
from workers.types import DeviceStatus

Tone = Literal["good", "warn", "bad"]

_REPAIR = "Workers are started again and tested by themselves; if this lasts, the log says why."
_MAX_TROUBLES = 3


@dataclass(frozen=True, slots=True)
class Serving:
    """Whether a request that is sent now is served."""

    tone: Tone
    short: str
    """For the title of the browser's tab."""
    sentence: str
    advice: str
    code: str = ""
    """What a request is refused with; empty where it is served."""


def serving_now(components: Components) -> Serving:
    """As the service stands now."""
    match components.readiness():
        case "draining":
            return Serving(
                "bad",
                "Stopping",
                "No. The service is stopping.",
                "Running work may finish; what is new is refused. Send requests to another service, or start this "
                "one again.",
                Draining.code,
            )
        case "no-storage":
            return Serving(
                "bad",
                "No storage",
                "No. The disk of the data folder does not work.",
                f"{_sentence(components.cache.trouble or 'it cannot be written')} Free space, mount it again, or put "
                "back what is gone; the service looks by itself every few seconds.",
                "out-of-resources",
            )
        case "no-worker":
            return Serving(
                "bad",
                "No worker",
                "No. No worker is ready."
                if not _ready(components)
                else "No. A kind of device has no worker.",
                f"{_troubles(components.pool.status())} {_REPAIR}",
                "no-worker",
            )
    return _with_room(components)


def _with_room(components: Components) -> Serving:
    scheduler = components.scheduler
    try:
        scheduler.check_room()
    except QueueFull as full:
        seconds = scheduler.retry_after_seconds()
        return Serving(
            "warn",
            "Full",
            "Not now. The queue is full.",
            f"All {scheduler.num_admitted} places are taken. One may be free in {seconds:.0f} s, which clients are "
            "told as Retry-After; more devices or a larger --queue-size make room.",
            full.full_code,
        )
    if (trouble := components.database.trouble) is not None:
        return Serving("warn", "No jobs", "Yes, but no jobs.", _advice_on_database(components, trouble))
    devices = components.pool.status()
    ready = _ready(components)
    if len(ready) < len(devices):
        return Serving(
            "warn",
            "Ready",
            f"Yes, with {len(ready)} of {len(devices)} devices.",
            f"{_troubles(devices)} {_REPAIR}",
        )
    if scheduler.num_waiting:
        behind = f"after {_count(scheduler.num_waiting, 'evaluation')} that {_wait(scheduler.num_waiting)}"
        return Serving(
            "good", "Ready", "Yes. A request sent now is served.", f"It is evaluated {behind} for a device."
        )
    idle = sum(not device.busy for device in devices)
    state = f"{idle} of {len(devices)} devices are idle" if len(devices) > 1 else "the device is idle"
    if not idle:
        state = "the device is busy" if len(devices) == 1 else f"all {len(devices)} devices are busy"
    return Serving("good", "Ready", "Yes. A request sent now is served.", f"Nothing waits, and {state}.")


def _advice_on_database(components: Components, trouble: str) -> str:
    remedy = f"Free space for {FILE_NAME} in the data folder, or move it away if it is damaged"
    if components.database.is_shared:
        remedy = "See to PostgreSQL and the way to it"
    return (
        f"{_sentence(trouble)} Requests that wait for their answer are served; what would become a job, or asks for "
        f"one, is refused. {remedy}; the service tries again by itself."
    )


def _ready(components: Components) -> list[DeviceStatus]:
    return [device for device in components.pool.status() if device.ready]


def _troubles(devices: list[DeviceStatus]) -> str:
    """Of those that are not ready, the first few in words."""
    troubles = [
        f"{name}{f' of node {device.node}' if device.node else ''}: {device.trouble or 'not tested yet'}."
        for device, name in zip(devices, device_names(devices), strict=True)
        if not device.ready
    ]
    if len(troubles) > _MAX_TROUBLES:
        troubles[_MAX_TROUBLES:] = [f"And {len(troubles) - _MAX_TROUBLES} more, below."]
    return " ".join(troubles)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _wait(number: int) -> str:
    return "waits" if number == 1 else "wait"
