"""What a supervised process is to its supervisor, wherever it runs: on this machine or on a node of a cluster."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from workers.errors import WorkerTrouble
from workers.messages import FromWorker, ToWorker
from workers.types import WorkerConfig


@dataclass(frozen=True, slots=True)
class PipeClosed:
    """Nothing more comes from the worker: it died, or is about to."""

    lost: str = ""
    """How its machine, or the connection to it, was lost; empty when the process itself closed its pipe."""


@dataclass(frozen=True, slots=True)
class Undelivered:
    """A task never reached the worker, because its machine could not get or keep the files."""

    task_id: int
    error: WorkerTrouble


class ProcessHandle(Protocol):
    """A process that computes, as the one who started it holds it."""

    @property
    def pid(self) -> int:
        """On the machine that it runs on."""

    @property
    def was_ended_here(self) -> bool:
        """Whether a signal of ours may have ended it."""

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP) and not continued yet: none of its threads runs."""

    @property
    def is_stuck(self) -> bool:
        """Whether it was there still after SIGKILL: its driver hangs, and its device is lost."""

    def send(self, message: ToWorker) -> None:
        """Put a message on its way; nothing happens when the worker is gone."""

    async def receive(self, timeout_seconds: float) -> FromWorker | PipeClosed | Undelivered | None:
        """The next message; None when nothing came for that long."""

    async def end(self, term_grace_seconds: float) -> int:
        """End the process, whatever it is doing, and reap it; returns its exit status (-N for signal N)."""

    async def kill(self) -> int:
        """End the process now, frozen or not, and reap it; returns its exit status."""


Spawn = Callable[[WorkerConfig], Awaitable[ProcessHandle]]
"""Starts a worker process. Raises OSError when that is not possible now."""
