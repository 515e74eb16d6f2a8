"""Keeps a worker running on one device: starts it, starts another when it has died, and says how the device does."""

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from workers.messages import Evaluate, FromWorker
from workers.processes.process_handle import Spawn, Undelivered
from workers.processes.restart_policy import RestartPolicy
from workers.processes.running_worker import RunningWorker, State
from workers.processes.timeouts import Timeouts
from workers.processes.worker_death import Cause, Death
from workers.types import DeviceKind, DeviceStatus, EvalJob, WeightsId, WorkerConfig

logger = logging.getLogger(__name__)

_UNDELIVERED_SECONDS = 60.0
"""How long a machine that could not be brought a file is the last choice."""


class Owner(Protocol):
    """Whom a supervisor reports to; it is called on the event loop, none may raise."""

    def worker_started(self, worker: "Supervisor") -> None:
        """A new process has passed its whole self-test."""

    def worker_idle(self, worker: "Supervisor") -> None:
        """The worker can take a task."""

    def task_message(self, worker: "Supervisor", task: Evaluate, message: FromWorker | Undelivered) -> None:
        """A message about a task that was not stopped."""

    def worker_died(self, worker: "Supervisor", death: Death) -> None:
        """The process is gone; another will follow."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a worker runs, if not on this machine."""

    node: str = ""
    """Name of its node; empty for this machine."""
    device: str = ""
    """The device as its node counts them, where that differs from what the worker itself sees."""
    build: str = ""
    """Of torch, which is among what decides the bits of a result."""


THIS_MACHINE = Place()


class Supervisor:
    """One device and, most of the time, the worker that runs on it."""

    def __init__(
        self, number: int, config: WorkerConfig, place: Place, owner: Owner, timeouts: Timeouts, spawn: Spawn
    ) -> None:
        self.number = number
        """Of no other worker of the pool, now or later."""
        self.config = config
        self.place = place
        self._owner = owner
        self._timeouts = timeouts
        self._spawn = spawn
        self._policy = RestartPolicy(self._timeouts)
        self._worker: RunningWorker | None = None
        """None between a death and the next start."""
        self._device_name = ""
        self._versions: dict[str, str] = {}
        self._restarts: Counter[str] = Counter()
        """By what ended the worker before."""
        self._tested_at: float | None = None
        """When the last worker that is gone passed its last self-test, on the monotonic clock."""
        self._undelivered: tuple[str, float] | None = None
        """Why files could not be brought to its machine of late, and when."""

    # -- what the pool asks

    @property
    def is_idle(self) -> bool:
        """Whether it can take a task now."""
        return self._state is State.IDLE

    @property
    def is_evaluating(self) -> bool:
        """Whether it has a task that is wanted."""
        return self._state is State.BUSY

    @property
    def cannot_start(self) -> bool:
        """Whether it is not likely to take a task soon."""
        return self._policy.cannot_start

    @property
    def is_settled(self) -> bool:
        """Whether its first start has come to an end, good or bad."""
        return self.cannot_start or self._has_passed

    @property
    def kind(self) -> DeviceKind:
        """What it computes on, known once it was ready."""
        return DeviceKind(self.config.device.partition(":")[0], self._device_name, self.place.build)

    @property
    def task(self) -> Evaluate | None:
        """What it has in hand."""
        return self._worker.task if self._worker else None

    @property
    def task_seconds(self) -> float:
        """Since it was given its task."""
        return self._worker.task_seconds if self._worker else 0.0

    @property
    def resident(self) -> frozenset[WeightsId]:
        """Whose weights lie on the device."""
        return self._worker.resident if self._worker else frozenset()

    @property
    def versions(self) -> dict[str, str]:
        """Of the packages that make the numbers."""
        return self._versions

    @property
    def memory_bytes(self) -> int:
        """All that its device has; 0 while no worker runs."""
        return self._worker.memory_bytes if self._worker else 0

    def assign(self, task: Evaluate) -> None:
        """Give an idle worker a task."""
        assert self._worker is not None
        self._worker.assign(task)

    def stop_task(self) -> None:
        """Have it give up the running task; a worker that does not in time is ended."""
        if self._worker is not None:
            self._worker.stop_task()

    @property
    def can_load_ahead(self) -> bool:
        """Whether it evaluates, and loads nothing meanwhile as far as is known."""
        return self._worker is not None and self._worker.can_load_ahead

    @property
    def loads(self) -> frozenset[WeightsId]:
        """Weights that it needs for its task, or was asked to load beside it."""
        return self._worker.loads if self._worker else frozenset()

    def load_ahead(self, job: EvalJob) -> None:
        """Have it load, beside the running task, the weights that it needs next."""
        if self._worker is not None:
            self._worker.load_ahead(job)

    def note_undelivered(self, reason: str) -> None:
        """Files could not be brought to its machine: for a while it is the last choice."""
        self._undelivered = reason, time.monotonic()

    @property
    def lacks_files(self) -> str:
        """Why files could not be brought to its machine of late; empty when they could."""
        if self._undelivered and time.monotonic() - self._undelivered[1] < _UNDELIVERED_SECONDS:
            return self._undelivered[0]
        return ""

    def status(self) -> DeviceStatus:
        """The device as seen from outside."""
        trouble, worker = self.trouble, self._worker
        tested_at = worker.tested_at if worker and worker.tested_at else self._tested_at
        return DeviceStatus(
            device=self.place.device or self.config.device,
            node=self.place.node,
            ready=self._has_passed and not trouble,
            busy=self._state in (State.BUSY, State.STOPPING),
            pid=worker.pid if worker else None,
            restarts=self._restarts.total(),
            device_name=self._device_name,
            trouble=trouble,
            self_test_age_seconds=time.monotonic() - tested_at if tested_at else None,
            restarts_by_reason={cause.value: self._restarts[cause.value] for cause in Cause},
            last_death=self._policy.last_death,
            memory=worker.memory if worker else None,
            resident=frozenset(checksum for _version, checksum, _key in self.resident),
            task=worker.running_task if worker else None,
            versions=self._versions,
        )

    @property
    def trouble(self) -> str:
        """Why the device is not to be relied on now, for an operator; empty when nothing is wrong."""
        own = self._worker.trouble if self._worker and self._has_passed else self._policy.trouble
        return own or self.lacks_files

    @property
    def _name(self) -> str:
        """As the log names it."""
        device = self.place.device or self.config.device
        return f"{self.place.node} {device}" if self.place.node else device

    @property
    def _state(self) -> State | None:
        return self._worker.state if self._worker else None

    @property
    def _has_passed(self) -> bool:
        """Whether the worker that runs now has passed its first self-test."""
        return self._state not in (None, State.STARTING)

    # -- one worker after the other

    async def run(self) -> None:
        """Keep a worker running until cancelled; when this returns, no process is left."""
        try:
            while True:
                self._worker = worker = RunningWorker(
                    self.config, self._name, self._timeouts, self._spawn, self
                )
                death = await worker.run()
                self._worker, self._tested_at = None, worker.tested_at or self._tested_at
                self._policy.worker_died(death, worker.lifetime_seconds)
                if death.task and self._policy.is_out_of_service:
                    logger.error("device %s is %s", self._name, self.trouble)
                self._owner.worker_died(self, death)
                if self._policy.is_lost:
                    logger.error("device %s is %s", self._name, self.trouble)
                    return
                await asyncio.sleep(self._policy.delay_seconds())
                self._restarts[death.cause.value] += 1
        finally:
            self._worker = None

    # -- what the running worker reports

    def self_test_passed(self) -> None:
        """Whatever was wrong with the device before, it may be relied on again."""
        assert self._worker is not None
        self._device_name, self._versions = self._worker.device_name, self._worker.versions
        self._policy.self_test_passed()
        self._owner.worker_started(self)

    def became_idle(self) -> None:
        """Pass it on."""
        self._owner.worker_idle(self)

    def task_message(self, task: Evaluate, message: FromWorker | Undelivered) -> None:
        """Pass it on."""
        self._owner.task_message(self, task, message)

    def task_finished(self) -> None:
        """The device computes again what it should."""
        self._policy.task_finished()
