"""One worker process from its spawn to its death: what it does, what it holds, and when it must be ended.

STARTING -> IDLE <-> BUSY -> STOPPING -> IDLE
             ^ \\-> TESTING -/
"""

import asyncio
import enum
import logging
import time
from typing import Protocol

from workers.messages import (
    Accepted,
    BatchDone,
    Configure,
    Evaluate,
    Failed,
    Finished,
    FromWorker,
    Heartbeat,
    Loaded,
    Prefetch,
    Ready,
    Resident,
    SelfTest,
    SelfTestFailed,
    Stop,
    Stopped,
)
from workers.processes.liveness import Liveness
from workers.processes.process_handle import PipeClosed, ProcessHandle, Spawn, Undelivered
from workers.processes.timeouts import Timeouts
from workers.processes.worker_death import Cause, Death, cause_of, describe
from workers.types import EvalJob, RunningTask, WeightsId, WorkerConfig, WorkerMemory

logger = logging.getLogger(__name__)


class State(enum.Enum):
    """What a worker is doing."""

    STARTING = "starting"
    IDLE = "idle"
    TESTING = "testing"
    BUSY = "busy"
    STOPPING = "stopping"


class Listener(Protocol):
    """Whom a running worker reports to; it is called on the event loop, none may raise."""

    def self_test_passed(self) -> None:
        """The new process has passed its whole self-test."""

    def became_idle(self) -> None:
        """The worker can take a task."""

    def task_message(self, task: Evaluate, message: FromWorker | Undelivered) -> None:
        """A message about the running task; not called once the task is stopped."""

    def task_finished(self) -> None:
        """A task was done to its end, wanted or not."""


class RunningWorker:
    """One process. Used once: the next process has an object of its own."""

    def __init__(
        self, config: WorkerConfig, name: str, timeouts: Timeouts, spawn: Spawn, listener: Listener
    ) -> None:
        self.state = State.STARTING
        self.task: Evaluate | None = None
        """What it has in hand, wanted (BUSY) or not (STOPPING)."""
        self.resident: frozenset[WeightsId] = frozenset()
        self.device_name = ""
        self.versions: dict[str, str] = {}
        self.memory_bytes = 0
        self.memory: WorkerMemory | None = None
        """As last reported."""
        self._config = config
        self._timeouts = timeouts
        self._name = name
        self._spawn = spawn
        self._listener = listener
        self._process: ProcessHandle | None = None
        self._liveness = Liveness(timeouts.heartbeat_seconds)
        self._accepted = False
        """Whether it has said that it has the task."""
        self._next_batch: int | None = None
        """Of the task; None while its weights are being loaded."""
        self._task_weights: WeightsId | None = None
        self._loads_ahead: WeightsId | None = None
        """Weights that it was asked to load beside its task, until they lie on the device or it loads others."""
        self._started_at = self._state_since = time.monotonic()
        self._tested_at = 0.0

    # -- what the supervisor asks

    async def run(self) -> Death:
        """Spawn the process and serve it until it has ended. When this returns or raises, no process is left."""
        try:
            reason, cause = await self._run()
        except OSError as error:  # no descriptor, process or memory for it
            reason, cause = f"could not be started: {error.strerror or error}", Cause.OTHER
        except Exception as error:  # whatever it is, the next one may do better
            logger.exception("the worker on %s could not be kept", self._name)
            reason, cause = f"could not be kept: {type(error).__name__}", Cause.OTHER
        wanted = self.task if self.state is State.BUSY else None
        logger.warning("worker on %s %s (%s)", self._name, reason, self.state.value)
        return Death(
            reason,
            cause,
            starting=self.state is State.STARTING,
            task=wanted if self._accepted else None,
            unaccepted_task=None if self._accepted else wanted,
        )

    def assign(self, task: Evaluate) -> None:
        """Give it a task; it is idle."""
        self.task, self._accepted, self._next_batch = task, False, None
        self._task_weights = task.job.weights_id
        if self._loads_ahead == self._task_weights:
            self._loads_ahead = None
        self._liveness.task_begins()
        self._enter(State.BUSY)
        self._send(task)

    def stop_task(self) -> None:
        """Have it give up the running task; if it does not in time, it is ended."""
        if self.state is State.BUSY and self.task is not None:
            self._enter(State.STOPPING)
            self._send(Stop(self.task.task_id))

    @property
    def loads(self) -> frozenset[WeightsId]:
        """Weights that it needs for its task, or was asked to load beside it."""
        of_task = self._task_weights if self.task else None
        return frozenset(weights for weights in (of_task, self._loads_ahead) if weights)

    @property
    def can_load_ahead(self) -> bool:
        """Whether it evaluates, and loads nothing meanwhile as far as is known."""
        return self.state is State.BUSY and self._next_batch is not None and self._loads_ahead is None

    def load_ahead(self, job: EvalJob) -> None:
        """Have it load, beside the running task, the weights that it needs next."""
        self._loads_ahead = job.weights_id
        self._send(Prefetch(job))

    @property
    def pid(self) -> int | None:
        """None before the process is there."""
        return self._process.pid if self._process else None

    @property
    def lifetime_seconds(self) -> float:
        """Since it was asked to start."""
        return time.monotonic() - self._started_at

    @property
    def tested_at(self) -> float | None:
        """When it last passed a self-test, on the monotonic clock; None before the first."""
        return self._tested_at or None

    @property
    def task_seconds(self) -> float:
        """Since it was given its task."""
        return time.monotonic() - self._state_since

    @property
    def running_task(self) -> RunningTask | None:
        """What it has in hand, as seen from outside."""
        if self.task is None:
            return None
        start, stop = self.task.start, self.task.stop
        if self._next_batch is None:
            return RunningTask(self.task.job.weights_checksum, "loading", start, start, stop)
        batch = min(max(start, self._next_batch), stop - 1)
        return RunningTask(self.task.job.weights_checksum, "evaluating", batch, start, stop)

    @property
    def trouble(self) -> str:
        """Why it is not to be relied on now, for an operator; empty when nothing is wrong."""
        stalled, silent = self._liveness.stalled_seconds, self._liveness.silent_seconds
        if self._is_frozen_for(self._timeouts.frozen_seconds / 3):
            return f"no message for {silent:.0f} s"
        is_stalled = self.state is State.BUSY and stalled >= self._timeouts.progress_seconds / 3
        return f"no progress for {stalled:.0f} s" if is_stalled else ""

    # -- from spawn to death

    async def _run(self) -> tuple[str, Cause]:
        """Why it ended."""
        process = await self._spawn(self._config)
        self._process, self._liveness = process, Liveness(self._timeouts.heartbeat_seconds)
        try:
            self._send(Configure(self._config, self._timeouts.heartbeat_seconds))
            must_end = await self._listen(process)
            status = await (process.kill() if must_end else process.end(self._timeouts.terminate_seconds))
        except BaseException:  # the pool closes, perhaps while a process is being ended
            await asyncio.shield(process.kill())
            raise
        if process.is_stuck:
            return "could not be ended, even with SIGKILL: its driver hangs", Cause.STUCK
        return must_end or (describe(status), Cause.OTHER if process.was_ended_here else self._cause(status))

    def _cause(self, status: int) -> Cause:
        """A fault while other weights were being loaded may be theirs, so it says nothing about the task."""
        cause = cause_of(status)
        return Cause.ERROR if cause is Cause.FAULT and self._loads_ahead else cause

    async def _listen(self, process: ProcessHandle) -> tuple[str, Cause] | None:
        """Act on each message until the process must be ended (returns why) or has ended itself (None)."""
        while True:
            message = await process.receive(self._timeouts.heartbeat_seconds)
            if isinstance(message, PipeClosed):
                return (message.lost, Cause.LOST) if message.lost else None
            if isinstance(message, Undelivered):
                self._take_back(message)
                continue
            if isinstance(message, SelfTestFailed):
                return f"failed its self-test: {message.detail}", Cause.ERROR
            self._liveness.observe(message)
            self._act_on(message)
            if reason := self._overdue():
                return reason, Cause.HUNG
            if self.state is State.IDLE and self._self_test_is_due():
                self._start_self_test()

    def _act_on(self, message: FromWorker | None) -> None:
        match message:
            case None | SelfTestFailed():
                pass
            case Heartbeat(_, memory):
                self.memory = memory or self.memory
            case Ready(device_name, versions, memory_bytes):
                self.device_name, self.versions = device_name, versions
                self.memory_bytes = memory_bytes
                self._tested_at = time.monotonic()
                if self.state is State.STARTING:
                    logger.info("worker on %s is ready %s", self._name, device_name)
                    self._enter(State.IDLE)
                    self._listener.self_test_passed()
                self._become_idle()
            case Resident(weights):
                self.resident = weights
                if self._loads_ahead in weights:
                    self._loads_ahead = None
            case _:
                self._act_on_task(message)

    def _act_on_task(self, message: FromWorker) -> None:
        task = self.task
        if task is None:
            return
        match message:
            case Accepted():
                self._accepted = True
            case Loaded(_, seconds):
                self._next_batch = task.start
                if seconds:  # one load at a time: what was loaded ahead was given up, or is what was wanted
                    self._loads_ahead = None
            case BatchDone(_, score):
                self._next_batch = score.index + 1
            case Finished():
                self._listener.task_finished()
        if self.state is State.BUSY:
            self._listener.task_message(task, message)
        if isinstance(message, Finished | Stopped | Failed):
            self.task = None
            self._become_idle()

    def _take_back(self, message: Undelivered) -> None:
        """The task never reached the process, which can take another."""
        if self.task is None or self.task.task_id != message.task_id:
            return
        if self.state is State.BUSY:
            self._listener.task_message(self.task, message)
        self.task = None
        self._become_idle()

    def _become_idle(self) -> None:
        if self._self_test_is_due():
            self._start_self_test()
        else:
            self._enter(State.IDLE)
            self._listener.became_idle()

    def _self_test_is_due(self) -> bool:
        return time.monotonic() - self._tested_at >= self._timeouts.self_test_interval_seconds

    def _start_self_test(self) -> None:
        self._enter(State.TESTING)
        self._send(SelfTest())

    def _overdue(self) -> str:
        """Why the process must be ended now; empty when it need not be."""
        timeouts = self._timeouts
        if self._is_frozen_for(timeouts.frozen_seconds):
            return "froze"
        if self.state is State.BUSY:
            is_hung = self._liveness.stalled_seconds >= timeouts.progress_seconds
            return f"made no progress for {timeouts.progress_seconds:g} s" if is_hung else ""
        limits = {
            State.STARTING: timeouts.start_seconds,
            State.TESTING: timeouts.self_test_seconds,
            State.STOPPING: timeouts.stop_seconds,
        }
        is_late = time.monotonic() - self._state_since > limits.get(self.state, float("inf"))
        return f"took too long ({self.state.value})" if is_late else ""

    def _is_frozen_for(self, seconds: float) -> bool:
        """Whether it was silent for so long, and not because of its work.

        A worker that starts or is busy may be silent for long, while a library is opened from a cold disk or holds
        the interpreter: there the system must say that it is stopped.
        """
        if self._liveness.silent_seconds < seconds:
            return False
        may_be_silent = self.state in (State.STARTING, State.BUSY)
        return not may_be_silent or (self._process is not None and self._process.is_stopped)

    def _send(self, message: Configure | Evaluate | Stop | Prefetch | SelfTest) -> None:
        if self._process is not None:
            self._process.send(message)

    def _enter(self, state: State) -> None:
        self.state, self._state_since = state, time.monotonic()
