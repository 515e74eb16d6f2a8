"""Keeps one worker alive: starts it, believes it only after its self-test, watches it, ends it, starts anew.

DOWN -> STARTING -> IDLE <-> BUSY -> STOPPING -> IDLE
          |          ^ \\-> TESTING -/
          +-- any state, when the process dies, freezes or will not stop --> DOWN
"""

import asyncio
import enum
import logging
import random
import signal
from dataclasses import dataclass
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
from workers.types import DeviceKind, DeviceStatus, EvalJob, WeightsId, WorkerConfig
from workers.worker_process import ENTRY_MODULE, PipeClosed, WorkerProcess

logger = logging.getLogger(__name__)

FROZE = "froze"

FAULT_SIGNALS = {
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGABRT,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGTRAP,
    signal.SIGSYS,
}
"""What a process brings upon itself; every other signal comes from outside."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a supervisor waits for what, in seconds."""

    heartbeat: float = 0.5
    """Between two heartbeats."""
    frozen: float = 10.0
    """Silence after which a worker counts as frozen; three times that while it starts, for opening a large
    library keeps every thread of a process waiting."""
    start: float = 300.0
    """From spawn to a passed self-test."""
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


@dataclass(frozen=True, slots=True)
class Death:
    """What a process had in hand when it ended, and whose doing that was."""

    task: Evaluate | None
    """The task it had accepted; None when it was idle, or had been told to stop."""
    unaccepted_task: Evaluate | None
    """A task that was on its way to it."""
    own_doing: bool
    """The process brought it about: a fault, an abort, an exit. A kill from outside is not."""


class Owner(Protocol):
    """Whom a supervisor reports to; every call comes on the event loop, none may raise."""

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
        patience: Patience | None = None,
        entry_module: str = ENTRY_MODULE,
    ) -> None:
        self.config = config
        self.state = State.DOWN
        self.task: Evaluate | None = None
        self.resident: frozenset[WeightsId] = frozenset()
        self.versions: dict[str, str] = {}
        self.failed_starts = 0
        """Deaths in a row before the self-test was passed."""
        self.last_trouble = ""
        self._owner = owner
        self._patience = patience or Patience()
        self._entry_module = entry_module
        self._process: WorkerProcess | None = None
        self._device_name = ""
        self._restarts = 0
        self._deaths_in_a_row = 0
        self._accepted = False
        self._state_since = 0.0
        self._tested_at = 0.0
        self._started_at = 0.0
        self._silent_beats = 0

    # -- what the pool asks

    @property
    def idle(self) -> bool:
        """Whether it can take a task now."""
        return self.state is State.IDLE

    @property
    def kind(self) -> DeviceKind:
        """What it computes on, known once it was ready."""
        return DeviceKind(self.config.device.partition(":")[0], self._device_name)

    def assign(self, task: Evaluate) -> None:
        """Give an idle worker a task."""
        self.task, self._accepted = task, False
        self._enter(State.BUSY)
        self._send(task)

    def stop_task(self) -> None:
        """Nobody wants the running task: a worker that does not stop in time is ended."""
        if self.state is State.BUSY and self.task is not None:
            self._enter(State.STOPPING)
            self._send(Stop(self.task.task_id))

    def prefetch(self, job: EvalJob) -> None:
        """Have a busy worker load what it will be given next."""
        self._send(Prefetch(job))

    def status(self) -> DeviceStatus:
        """The worker as seen from outside."""
        return DeviceStatus(
            device=self.config.device,
            ready=self.state not in (State.DOWN, State.STARTING),
            busy=self.state in (State.BUSY, State.STOPPING),
            pid=self._process.pid if self._process else None,
            restarts=self._restarts,
            device_name=self._device_name,
        )

    # -- the life of a worker

    async def run(self) -> None:
        """Keep a worker alive until cancelled; when this returns, no process is left."""
        try:
            while True:
                self._enter(State.STARTING)
                try:
                    reason, status = await self._live_once()
                except Exception as error:  # whatever it is, the next one may do better
                    logger.exception("the worker on %s could not be kept", self.config.device)
                    reason, status = f"could not be kept: {type(error).__name__}", 0
                self._record_death(reason, status)
                await asyncio.sleep(self._restart_delay())
                self._restarts += 1
        finally:
            self._process, self.task = None, None
            self._enter(State.DOWN)

    async def _live_once(self) -> tuple[str, int]:
        """One process from spawn to reaped; returns why it ended and its exit status (0: we ended it)."""
        process = await WorkerProcess.spawn(self.config, self._entry_module)
        self._process, self._started_at, self._silent_beats = process, _now(), 0
        try:
            self._send(Configure(self.config, self._patience.heartbeat))
            trouble = await self._listen(process)
            status = await (process.kill() if trouble == FROZE else process.end(self._patience.terminate))
        except BaseException:  # the pool closes, perhaps while a process is being ended
            await asyncio.shield(process.kill())
            raise
        return (trouble, 0) if trouble else (_describe(status), status)

    async def _listen(self, process: WorkerProcess) -> str | None:
        """Act on each message until the process must be ended (returns why) or has ended itself (None)."""
        while True:
            message = await process.receive(self._patience.heartbeat)
            if isinstance(message, PipeClosed):
                return None
            if isinstance(message, SelfTestFailed):
                return f"failed its self-test: {message.detail}"
            self._act_on(message)
            if trouble := self._trouble():
                return trouble

    def _act_on(self, message: FromWorker | None) -> None:
        self._silent_beats = self._silent_beats + 1 if message is None else 0
        match message:
            case None | Heartbeat() | SelfTestFailed():
                pass
            case Ready(device_name, versions):
                self._device_name, self.versions = device_name, versions
                self.failed_starts = 0
                if self.state is State.STARTING:
                    logger.info("worker on %s is ready %s", self.config.device, device_name)
                self._tested_at = _now()
                self._become_idle()
            case Resident(weights):
                self.resident = weights
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
                self._deaths_in_a_row = 0
            self._become_idle()

    def _become_idle(self) -> None:
        if _now() - self._tested_at >= self._patience.self_test:
            self._test()
        else:
            self._enter(State.IDLE)
            self._owner.worker_idle(self)

    def _test(self) -> None:
        self._enter(State.TESTING)
        self._send(SelfTest())

    def _trouble(self) -> str | None:
        """Why the process must be ended now, if it must. Also sends a long idle one to its self-test."""
        patience, age = self._patience, _now() - self._state_since
        # Beats are counted, not time: after the whole machine slept, one is missed, not all.
        starting = self.state is State.STARTING
        if self._silent_beats * patience.heartbeat >= patience.frozen * (3 if starting else 1):
            return FROZE
        limits = {State.STARTING: patience.start, State.TESTING: patience.test, State.STOPPING: patience.stop}
        if age > limits.get(self.state, float("inf")):
            return f"took too long ({self.state.value})"
        if self.state is State.IDLE and _now() - self._tested_at >= patience.self_test:
            self._test()
        return None

    def _record_death(self, reason: str, status: int) -> None:
        """Note what ended, and tell the owner."""
        if self.state is State.STARTING:
            self.failed_starts += 1
        wanted = self.task if self.state is State.BUSY else None
        death = Death(
            task=wanted if self._accepted else None,
            unaccepted_task=None if self._accepted else wanted,
            own_doing=status > 0 or -status in FAULT_SIGNALS,
        )
        logger.warning("worker on %s %s (%s)", self.config.device, reason, self.state.value)
        self.last_trouble = reason
        self._process, self.task, self.resident = None, None, frozenset()
        lived_long = _now() - self._started_at > self._patience.restart_at_most
        self._deaths_in_a_row = 1 if lived_long else self._deaths_in_a_row + 1
        self._enter(State.DOWN)
        self._owner.worker_died(self, death)

    def _restart_delay(self) -> float:
        delay = self._patience.restart * 2.0 ** min(self._deaths_in_a_row - 1, 16)
        return min(delay, self._patience.restart_at_most) * random.uniform(0.5, 1.0)

    def _send(self, message: Configure | Evaluate | Stop | Prefetch | SelfTest) -> None:
        if self._process is not None:
            self._process.send(message)

    def _enter(self, state: State) -> None:
        self.state, self._state_since = state, _now()


def _now() -> float:
    return asyncio.get_running_loop().time()


def _describe(status: int) -> str:
    return f"ended with signal {-status}" if status < 0 else f"ended with status {status}"
