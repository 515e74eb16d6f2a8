"""A worker process from the inside: `python -m workers.worker_main FD PARENT_PID`, started by `WorkerProcess`.

Three threads. The main one evaluates. One listens to the parent, so that a stop reaches a task that runs,
and ends the process when the parent is gone. One sends heartbeats, so that a long kernel is no hang.
No secret is on the command line: a key comes through the pipe, and only to be used.
"""

import contextlib
import ctypes
import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

from workers import messages
from workers.errors import WorkerError
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
    ToWorker,
)
from workers.types import BatchScore, EvalJob, WeightsId, WorkerConfig

EXIT_UNEXPECTED = 70
"""What a worker ends with that met an error it has no name for (EX_SOFTWARE of sysexits.h)."""
YIELDING_NICENESS = 5
"""A worker that computes on the processors lets the parent's few milliseconds go first."""
_PR_SET_PDEATHSIG = 1


class JobRunner(Protocol):
    """What computes inside a worker; `workers.runner.Runner` is the real one."""

    def __init__(self, config: WorkerConfig) -> None: ...

    def self_test(self) -> str | None:
        """None when known numbers come out right; else what came out."""

    def load(self, job: EvalJob, checkpoint: Callable[[], None]) -> float:
        """Bring the job's weights onto the device. Returns the seconds it took, 0.0 when they were there.

        `checkpoint` is called often and may raise to stop.
        """

    def evaluate(self, job: EvalJob, batches: range, checkpoint: Callable[[], None]) -> Iterator[BatchScore]:
        """The scores of those batches, in order; `checkpoint` is called often and may raise to stop."""

    def prefetch(self, job: EvalJob) -> None:
        """Load the weights of the job that comes next, in the background, if there is room."""

    def resident(self) -> frozenset[WeightsId]:
        """Whose weights lie on the device."""

    @property
    def device_name(self) -> str: ...

    @property
    def versions(self) -> dict[str, str]: ...


class StopRequested(Exception):
    """The parent wants the running task no more."""


class Worker:
    """Answers the parent's messages one after the other until the parent closes the pipe."""

    def __init__(self, connection: socket.socket, runner_class: type[JobRunner]) -> None:
        self._connection = connection
        self._runner_class = runner_class
        self._inbox: queue.SimpleQueue[Evaluate | SelfTest] = queue.SimpleQueue()
        self._send_lock = threading.Lock()
        self._stopped_up_to = 0
        self._reported_resident: frozenset[WeightsId] = frozenset()
        self._runner: JobRunner | None = None

    def run(self) -> NoReturn:
        """Live until the pipe closes or an error comes that nobody foresaw."""
        configure = messages.receive(self._connection)
        if not isinstance(configure, Configure):
            os._exit(0)
        if configure.config.device == "cpu":
            os.nice(YIELDING_NICENESS)
        threading.Thread(target=self._beat, args=(configure.heartbeat_seconds,), daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()
        try:
            self._runner = self._runner_class(configure.config)
            self._test(self._runner)
            while True:
                self._answer(self._runner, self._inbox.get())
        except BaseException:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(EXIT_UNEXPECTED)  # no teardown: a broken device may hang it

    def _answer(self, runner: JobRunner, message: Evaluate | SelfTest) -> None:
        if isinstance(message, SelfTest):
            self._test(runner)
        else:
            self._evaluate(runner, message)

    def _test(self, runner: JobRunner) -> None:
        wrong = runner.self_test()
        self._send(SelfTestFailed(wrong) if wrong else Ready(runner.device_name, runner.versions))

    def _evaluate(self, runner: JobRunner, task: Evaluate) -> None:
        def checkpoint() -> None:
            if task.task_id <= self._stopped_up_to:
                raise StopRequested

        self._send(Accepted(task.task_id))
        try:
            checkpoint()
            load_seconds = runner.load(task.job, checkpoint)
            self._report_resident(runner)
            self._send(Loaded(task.task_id, load_seconds))
            for score in runner.evaluate(task.job, range(task.start, task.stop), checkpoint):
                self._send(BatchDone(task.task_id, score))
        except StopRequested:
            self._send(Stopped(task.task_id))
        except WorkerError as error:
            self._send(Failed(task.task_id, error))
        else:
            self._send(Finished(task.task_id))

    def _report_resident(self, runner: JobRunner) -> None:
        resident = runner.resident()
        if resident != self._reported_resident:
            self._reported_resident = resident
            self._send(Resident(resident))

    def _listen(self) -> NoReturn:
        while (message := messages.receive(self._connection)) is not None:
            self._take(message)
        os._exit(0)  # the parent is gone: whatever runs is for nobody

    def _take(self, message: ToWorker) -> None:
        match message:
            case Stop(task_id):  # a worker has one task at a time, and their numbers only rise
                self._stopped_up_to = max(self._stopped_up_to, task_id)
            case Prefetch(job) if self._runner is not None:
                self._runner.prefetch(job)
            case Evaluate() | SelfTest():
                self._inbox.put(message)

    def _beat(self, seconds: float) -> None:
        while True:
            self._send(Heartbeat())
            if self._runner is not None:  # what was loaded ahead is not told otherwise
                self._report_resident(self._runner)
            time.sleep(seconds)

    def _send(self, message: FromWorker) -> None:
        # A parent that is gone is noticed by `_listen`, and by the kernel.
        with self._send_lock, contextlib.suppress(OSError):
            self._connection.sendall(messages.encode(message))


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel end this process when the parent's ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before the kernel knew
        os._exit(0)


def main(runner_class: type[JobRunner]) -> NoReturn:
    """The whole life of a worker process that computes with `runner_class`."""
    die_with_parent(parent_pid=int(sys.argv[2]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to hear; it tells us
    Worker(socket.socket(fileno=int(sys.argv[1])), runner_class).run()


if __name__ == "__main__":
    from workers.runner import Runner

    main(Runner)
