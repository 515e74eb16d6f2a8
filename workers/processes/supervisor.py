"""Keeps one worker alive: starts it, believes it only after its self-test, watches it, ends it, starts anew.

DOWN -> STARTING -> IDLE <-> BUSY -> STOPPING -> IDLE
          |          ^ \\-> TESTING -/
          +-- any state, when the process dies, freezes or will not stop --> DOWN

A device on which evaluations fail one after the other is out of service: DOWN for longer and longer, until it
passes its self-test.
"""

import asyncio
import enum
import logging
import random
from dataclasses import dataclass, replace
from typing import Protocol

from workers.messages import (
    Accepted,
    Configure,
    Evaluate,
    Failed,
    Finished,
    FromWorker,
    Heartbeat,
    Prefetch,
    Ready,
    Resident,
    SelfTest,
    SelfTestFailed,
    Stop,
    Stopped,
)
from workers.processes.worker_death import Cause, Death, cause_of, describe
from workers.processes.worker_process import ENTRY_MODULE, PipeClosed, WorkerProcess
from workers.types import DeviceKind, DeviceStatus, EvalJob, WeightsId, WorkerConfig

logger = logging.getLogger(__name__)

MAX_FAILED_STARTS = 3
"""Starts in a row without a passed self-test after which a worker is no longer waited for."""
MAX_LOST_TASKS = 3
"""Tasks in a row, of two evaluations or more, whose failure takes a device out of service."""

_DEVICE_MAY_BE_THE_CAUSE = (Cause.FAULT, Cause.ERROR, Cause.HUNG)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long a supervisor waits for what, in seconds."""

    heartbeat: float = 0.5
    """Between two heartbeats."""
    frozen: float = 10.0
    """Silence after which a worker that has nothing long to do counts as frozen."""
    progress: float = 180.0
    """Without progress of a task after which a worker counts as hung. The longest step of full V1 on a CPU is a
    feed-forward layer of one sequence, 0.7 s on two cores and ten times that for denormal weights; an operation
    that keeps the heartbeats waiting, such as parsing the largest header, must end within this time too."""
    start: float = 300.0
    """From spawn to a passed self-test. Nothing else limits a start: a library opened from a cold disk keeps
    every thread of a process waiting."""
    test: float = 60.0
    """From asking for another self-test to its passing."""
    stop: float = 15.0
    """From telling a worker to stop its task to SIGTERM."""
    terminate: float = 3.0
    """From SIGTERM to SIGKILL."""
    restart: float = 0.2
    """Before the first restart; doubles with each death in a row, and is jittered."""
    restart_at_most: float = 30.0
    """Also the age at which a worker counts as sound, so that its death is the first in a row again."""
    out_of_service: float = 60.0
    """Before the first restart of a device that is out of service; doubles each time it is taken out again."""
    out_of_service_at_most: float = 900.0
    self_test: float = 60.0
    """Age of a self-test at which an idle worker takes another."""


class State(enum.Enum):
    """Where a worker is in its life."""

    DOWN = "down"
    STARTING = "starting"
    IDLE = "idle"
    TESTING = "testing"
    BUSY = "busy"
    STOPPING = "stopping"


class Owner(Protocol):
    """Whom a supervisor reports to; every call comes on the event loop, none may raise."""

    def worker_started(self, worker: "Supervisor") -> None:
        """A new process has passed its whole self-test."""

    def worker_idle(self, worker: "Supervisor") -> None:
        """The worker can take a task."""

    def task_message(self, worker: "Supervisor", task: Evaluate, message: FromWorker) -> None:
        """News of a task that nobody has stopped."""

    def worker_died(self, worker: "Supervisor", death: Death) -> None:
        """The process is gone; another will follow."""


class Supervisor:
    """One device and the process that serves it, through any number of deaths."""

    def __init__(
        self,
        config: WorkerConfig,
        owner: Owner,
        timeouts: Timeouts | None = None,
        entry_module: str = ENTRY_MODULE,
    ) -> None:
        self.config = config
        self.state = State.DOWN
        self.task: Evaluate | None = None
        self.resident: frozenset[WeightsId] = frozenset()
        self.versions: dict[str, str] = {}
        self._owner = owner
        self._timeouts = timeouts or Timeouts()
        self._entry_module = entry_module
        self._process: WorkerProcess | None = None
        self._device_name = ""
        self._restarts = 0
        self._deaths_in_a_row = 0
        self._failed_starts = 0
        """Deaths in a row before the self-test was passed."""
        self._last_death = ""
        self._lost_tasks: list[WeightsId] = []
        """Weights of the tasks that ended this device's workers since one was finished."""
        self._times_out_of_service = 0
        self._out_of_service = False
        self._accepted = False
        self._loading_ahead: WeightsId | None = None
        self._state_since = 0.0
        self._tested_at = 0.0
        self._started_at = 0.0
        self._heard_at = 0.0
        self._progress = 0
        self._silent_seconds = 0.0
        self._stalled_seconds = 0.0

    # -- what the pool asks

    @property
    def idle(self) -> bool:
        """Whether it can take a task now."""
        return self.state is State.IDLE

    @property
    def cannot_start(self) -> bool:
        """Whether it is not likely to take a task soon."""
        return self._out_of_service or self._failed_starts >= MAX_FAILED_STARTS

    @property
    def settled(self) -> bool:
        """Whether its first start has come to an end, good or bad."""
        return self.cannot_start or self.state not in (State.DOWN, State.STARTING)

    @property
    def kind(self) -> DeviceKind:
        """What it computes on, known once it was ready."""
        return DeviceKind(self.config.device.partition(":")[0], self._device_name)

    def assign(self, task: Evaluate) -> None:
        """Give an idle worker a task."""
        self.task, self._accepted = task, False
        if self._loading_ahead == task.job.weights_id:
            self._loading_ahead = None
        self._stalled_seconds = 0.0
        self._enter(State.BUSY)
        self._send(task)

    def stop_task(self) -> None:
        """Nobody wants the running task: a worker that does not stop in time is ended."""
        if self.state is State.BUSY and self.task is not None:
            self._enter(State.STOPPING)
            self._send(Stop(self.task.task_id))

    def prefetch(self, job: EvalJob) -> None:
        """Have a busy worker load what it will be given next."""
        self._loading_ahead = job.weights_id
        self._send(Prefetch(job))

    def status(self) -> DeviceStatus:
        """The worker as seen from outside."""
        trouble = self.trouble
        return DeviceStatus(
            device=self.config.device,
            ready=self.state not in (State.DOWN, State.STARTING) and not trouble,
            busy=self.state in (State.BUSY, State.STOPPING),
            pid=self._process.pid if self._process else None,
            restarts=self._restarts,
            device_name=self._device_name,
            trouble=trouble,
        )

    @property
    def trouble(self) -> str:
        """Why it is not to be relied on now, for an operator; empty when nothing is wrong."""
        if self._out_of_service:
            evaluations = f"{len(self._lost_tasks)} evaluations in a row ended its worker"
            delay = self._out_of_service_seconds()
            return (
                f"out of service: {evaluations} (the last {self._last_death}); is tested after {delay:.0f} s"
            )
        if self.state in (State.DOWN, State.STARTING):
            return f"the last worker {self._last_death}" if self._last_death else ""
        if self.state is State.BUSY and self._stalled_seconds >= self._timeouts.progress / 3:
            return f"no progress for {self._stalled_seconds:.0f} s"
        if self.state is not State.BUSY and self._silent_seconds >= self._timeouts.frozen / 3:
            return f"not heard of for {self._silent_seconds:.0f} s"
        return ""

    # -- the life of a worker

    async def run(self) -> None:
        """Keep a worker alive until cancelled; when this returns, no process is left."""
        try:
            while True:
                self._enter(State.STARTING)
                self._started_at = _now()
                try:
                    death = await self._live_once()
                except OSError as error:  # no descriptor, process or memory for it
                    death = Death(f"could not be started: {error.strerror}", Cause.OTHER)
                except Exception as error:  # whatever it is, the next one may do better
                    logger.exception("the worker on %s could not be kept", self.config.device)
                    death = Death(f"could not be kept: {type(error).__name__}", Cause.OTHER)
                self._record_death(death)
                await asyncio.sleep(self._restart_delay())
                self._restarts += 1
        finally:
            self._process, self.task = None, None
            self._enter(State.DOWN)

    async def _live_once(self) -> Death:
        """One process from spawn to reaped; returns why it ended."""
        process = await WorkerProcess.spawn(self.config, self._entry_module)
        self._process, self._heard_at, self._silent_seconds = process, _now(), 0.0
        try:
            self._send(Configure(self.config, self._timeouts.heartbeat))
            death = await self._listen(process)
            status = await (process.kill() if death else process.end(self._timeouts.terminate))
        except BaseException:  # the pool closes, perhaps while a process is being ended
            await asyncio.shield(process.kill())
            raise
        return death or Death(
            describe(status), Cause.OTHER if process.was_ended_here else self._cause(status)
        )

    def _cause(self, status: int) -> Cause:
        """A fault while other weights were being loaded may be theirs, so it says nothing about the task."""
        cause = cause_of(status)
        return Cause.ERROR if cause is Cause.FAULT and self._loading_ahead else cause

    async def _listen(self, process: WorkerProcess) -> Death | None:
        """Act on each message until the process must be ended (returns why) or has ended itself (None)."""
        while True:
            message = await process.receive(self._timeouts.heartbeat)
            if isinstance(message, PipeClosed):
                return None
            if isinstance(message, SelfTestFailed):
                return Death(f"failed its self-test: {message.detail}", Cause.ERROR)
            self._note_heard(message)
            self._act_on(message)
            if death := self._overdue():
                return death

    def _note_heard(self, message: FromWorker | None) -> None:
        """Count the time without a message, and without progress.

        Of a long time in which nothing was received, as when the whole machine slept, only a moment counts.
        """
        passed = min(_now() - self._heard_at, 2 * self._timeouts.heartbeat)
        self._heard_at = _now()
        self._silent_seconds = self._silent_seconds + passed if message is None else 0.0
        stalled = message is None or (isinstance(message, Heartbeat) and message.progress == self._progress)
        self._stalled_seconds = self._stalled_seconds + passed if stalled else 0.0
        if isinstance(message, Heartbeat):
            self._progress = message.progress

    def _act_on(self, message: FromWorker | None) -> None:
        match message:
            case None | Heartbeat() | SelfTestFailed():
                pass
            case Ready(device_name, versions):
                self._device_name, self.versions = device_name, versions
                self._tested_at = _now()
                if self.state is State.STARTING:
                    logger.info("worker on %s is ready %s", self.config.device, device_name)
                    self._failed_starts, self._out_of_service = 0, False
                    self._enter(State.IDLE)
                    self._owner.worker_started(self)
                self._become_idle()
            case Resident(weights):
                self.resident = weights
                if self._loading_ahead in weights:
                    self._loading_ahead = None
            case _:
                self._act_on_task(message)

    def _act_on_task(self, message: FromWorker) -> None:
        task = self.task
        if task is None:
            return
        if isinstance(message, Accepted):
            self._accepted = True
        if self.state is State.BUSY:
            self._owner.task_message(self, task, message)
        if isinstance(message, Finished | Stopped | Failed):
            self.task = None
            if isinstance(message, Finished):
                self._deaths_in_a_row = self._times_out_of_service = 0
                self._lost_tasks = []
            self._become_idle()

    def _become_idle(self) -> None:
        if _now() - self._tested_at >= self._timeouts.self_test:
            self._test()
        else:
            self._enter(State.IDLE)
            self._owner.worker_idle(self)

    def _test(self) -> None:
        self._enter(State.TESTING)
        self._send(SelfTest())

    def _overdue(self) -> Death | None:
        """Why the process must be ended now, if it must. Also sends a long idle one to its self-test."""
        timeouts, age = self._timeouts, _now() - self._state_since
        if self.state is State.BUSY:
            if self._stalled_seconds >= timeouts.progress:
                return Death(f"made no progress for {timeouts.progress:g} s", Cause.HUNG)
        elif self.state is not State.STARTING and self._silent_seconds >= timeouts.frozen:
            return Death("froze", Cause.HUNG)
        limits = {State.STARTING: timeouts.start, State.TESTING: timeouts.test, State.STOPPING: timeouts.stop}
        if age > limits.get(self.state, float("inf")):
            return Death(f"took too long ({self.state.value})", Cause.HUNG)
        if self.state is State.IDLE and _now() - self._tested_at >= timeouts.self_test:
            self._test()
        return None

    def _record_death(self, death: Death) -> None:
        """Note what ended, and tell the owner."""
        starting = self.state is State.STARTING
        if starting:
            self._failed_starts += 1
        wanted = self.task if self.state is State.BUSY else None
        death = replace(
            death,
            starting=starting,
            task=wanted if self._accepted else None,
            unaccepted_task=None if self._accepted else wanted,
        )
        logger.warning("worker on %s %s (%s)", self.config.device, death.reason, self.state.value)
        self._last_death = death.reason
        self._process, self.task, self.resident = None, None, frozenset()
        self._loading_ahead = None
        lived_long = _now() - self._started_at > self._timeouts.restart_at_most
        self._deaths_in_a_row = 1 if lived_long else self._deaths_in_a_row + 1
        self._enter(State.DOWN)
        if death.task and death.cause in _DEVICE_MAY_BE_THE_CAUSE:
            self._note_lost_task(death.task.job.weights_id)
        self._owner.worker_died(self, death)

    def _note_lost_task(self, weights: WeightsId) -> None:
        """Take the device out of service when it fails one evaluation after the other.

        One evaluation alone cannot bring that about.
        """
        self._lost_tasks.append(weights)
        if len(self._lost_tasks) >= MAX_LOST_TASKS and len(set(self._lost_tasks)) > 1:
            self._out_of_service = True
            self._times_out_of_service += 1
            logger.error("device %s is %s", self.config.device, self.trouble)

    def _restart_delay(self) -> float:
        if self._out_of_service:
            return self._out_of_service_seconds()
        delay = self._timeouts.restart * 2.0 ** min(self._deaths_in_a_row - 1, 16)
        return min(delay, self._timeouts.restart_at_most) * random.uniform(0.5, 1.0)

    def _out_of_service_seconds(self) -> float:
        delay = self._timeouts.out_of_service * 2.0 ** min(self._times_out_of_service - 1, 16)
        return min(delay, self._timeouts.out_of_service_at_most)

    def _send(self, message: Configure | Evaluate | Stop | Prefetch | SelfTest) -> None:
        if self._process is not None:
            self._process.send(message)

    def _enter(self, state: State) -> None:
        self.state, self._state_since = state, _now()


def _now() -> float:
    return asyncio.get_running_loop().time()
