"""A worker process from the inside: `python -m workers.worker.main FD PARENT_PID`, started by `WorkerProcess`.

Three threads. The main one evaluates. One listens to the parent, so that a stop reaches a task that runs,
and ends the process when the parent is gone. One sends heartbeats, which say whether the main one advances.
An unexpected error in any of them ends the process: what is left of it could not be relied on.
No secret is on the command line: a key is sent through the pipe, and is used and not kept.
"""

import contextlib
import faulthandler
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

from workers.errors import NonFiniteResult, WorkerError
from workers.message_codec import encode, receive
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
from workers.own_process import be_ended_first_for_memory, die_with_parent, keep_memory_private
from workers.types import (
    BatchScore,
    CancelCheck,
    EvalJob,
    OnFraction,
    WeightsId,
    WorkerConfig,
    WorkerMemory,
)
from workers.worker.batch_report import BatchReport

EXIT_UNEXPECTED = 70
"""The status of a worker that met an unexpected error (EX_SOFTWARE of sysexits.h)."""
YIELDING_NICENESS = 5
"""A worker that computes on the CPU has a lower priority than the parent, which needs a few milliseconds."""
_MAX_DETAIL_CHARACTERS = 300
_MAX_FRAMES = 6
"""Innermost frames that are printed for an unexpected error."""


class JobRunner(Protocol):
    """What computes inside a worker; `workers.worker.runner.Runner` is the real one."""

    def self_test(self, *, with_large: bool) -> str | None:
        """None when a known evaluation gives the right numbers; else the wrong ones, in words.

        `with_large`: an evaluation with the layers of the served model too, not only the small one.
        """

    def reserve(self, job: EvalJob) -> None:
        """Called as soon as the worker has been given the job, beside whatever it does: its weights are not to be
        evicted any more, until `release`."""

    def release(self, job: EvalJob) -> None:
        """The job has ended, in whatever way."""

    def load(self, job: EvalJob, check_cancelled: CancelCheck) -> float:
        """Bring the job's weights onto the device. Returns the seconds it took, 0.0 when they were there.

        `check_cancelled` is called each time the work advances, and may raise to stop.
        """

    def evaluate(
        self, job: EvalJob, batches: range, check_cancelled: CancelCheck, on_fraction: OnFraction
    ) -> Iterator[BatchScore]:
        """The scores of those batches, in order; `check_cancelled` as for `load`.

        `on_fraction` may be called with how far the next one is.
        """

    def prefetch(self, job: EvalJob) -> None:
        """Load the weights of the job that is next, in the background, if there is memory for them."""

    def resident(self) -> frozenset[WeightsId]:
        """Whose weights lie on the device."""

    def memory(self) -> WorkerMemory:
        """What it takes of the device's memory; called beside an evaluation, so it must not wait for the device."""

    @property
    def device_name(self) -> str: ...

    @property
    def versions(self) -> dict[str, str]: ...

    @property
    def memory_bytes(self) -> int:
        """All that the device has."""


MakeRunner = Callable[[WorkerConfig], JobRunner]


class StopRequested(Exception):
    """The parent has stopped the running task."""


class Worker:
    """Answers the parent's messages one after the other until the parent closes the pipe."""

    def __init__(self, connection: socket.socket, make_runner: MakeRunner) -> None:
        self._connection = connection
        self._make_runner = make_runner
        self._inbox: queue.SimpleQueue[Evaluate | SelfTest] = queue.SimpleQueue()
        self._send_lock = threading.Lock()
        self._stopped_up_to = 0
        self._progress = 0
        self._reported_resident: frozenset[WeightsId] = frozenset()
        self._runner: JobRunner | None = None
        """None until its first self-test has passed."""

    def run(self) -> NoReturn:
        """Serve until the pipe closes or an unexpected error occurs."""
        _or_end_process(self._run)
        os._exit(0)

    def _run(self) -> None:
        configure = receive(self._connection)
        if not isinstance(configure, Configure):
            return
        if configure.config.device == "cpu":
            os.nice(YIELDING_NICENESS)
        self._start_thread(lambda: self._beat(configure.heartbeat_seconds))
        self._start_thread(self._listen)
        try:
            runner = self._make_runner(configure.config)
            self._test(runner, with_large=True)
        except Exception as error:  # before the first job, so its text can hold nothing secret
            self._send(SelfTestFailed(f"{type(error).__name__}: {error}"[:_MAX_DETAIL_CHARACTERS]))
            raise
        while True:
            self._answer(runner, self._inbox.get())

    def _start_thread(self, target: Callable[[], None]) -> None:
        threading.Thread(target=_or_end_process, args=(target,), daemon=True).start()

    def _answer(self, runner: JobRunner, message: Evaluate | SelfTest) -> None:
        if isinstance(message, SelfTest):
            self._test(runner, with_large=False)
        else:
            self._evaluate(runner, message)

    def _test(self, runner: JobRunner, *, with_large: bool) -> None:
        wrong = runner.self_test(with_large=with_large)
        if wrong:
            self._send(SelfTestFailed(wrong))
        else:
            self._runner = runner  # first, for the parent may answer at once
            self._send(Ready(runner.device_name, runner.versions, runner.memory_bytes))

    def _evaluate(self, runner: JobRunner, task: Evaluate) -> None:
        self._send(Accepted(task.task_id))
        outcome = self._outcome_of(task, runner)
        runner.release(task.job)  # first, for the parent may ask for a prefetch at once
        self._send(outcome)

    def _outcome_of(self, task: Evaluate, runner: JobRunner) -> Finished | Stopped | Failed | SelfTestFailed:
        def check_cancelled() -> None:
            self._progress += 1
            if task.task_id <= self._stopped_up_to:
                raise StopRequested

        try:
            check_cancelled()
            load_seconds = runner.load(task.job, check_cancelled)
            self._report_resident(runner)
            self._send(Loaded(task.task_id, load_seconds))
            is_tested = False
            report = BatchReport(task.task_id, task.start, self._send)
            batches = range(task.start, task.stop)
            for score in runner.evaluate(task.job, batches, check_cancelled, report.advanced):
                if not score.is_finite and not is_tested:
                    if wrong := runner.self_test(with_large=False):  # the device is broken, not the weights
                        return SelfTestFailed(wrong)
                    is_tested = True
                if not score.is_finite and not task.job.pieces:
                    # One such batch makes the mean so: the rest is not worth computing.
                    raise NonFiniteResult("the loss or the embedding of a batch is NaN or infinite")
                self._send(BatchDone(task.task_id, score))
                report.batch_begins(score.index + 1)
        except StopRequested:
            return Stopped(task.task_id)
        except WorkerError as error:
            return Failed(task.task_id, error)
        return Finished(task.task_id)

    def _report_resident(self, runner: JobRunner) -> None:
        resident = runner.resident()
        if resident != self._reported_resident:
            self._reported_resident = resident
            self._send(Resident(resident))

    def _listen(self) -> NoReturn:
        while (message := receive(self._connection)) is not None:
            self._take(message)
        os._exit(0)  # the parent is gone: no result of this process is wanted

    def _take(self, message: ToWorker) -> None:
        match message:
            case Stop(task_id):  # a worker has one task at a time, and their numbers only rise
                self._stopped_up_to = max(self._stopped_up_to, task_id)
            case Prefetch(job) if self._runner is not None:
                self._runner.prefetch(job)
            case Evaluate(job=job) if self._runner is not None:
                self._runner.reserve(job)  # here, for the prefetch that comes next must not evict its weights
                self._inbox.put(message)
            case SelfTest():
                self._inbox.put(message)

    def _beat(self, seconds: float) -> None:
        while True:
            runner = self._runner
            self._send(Heartbeat(self._progress, runner.memory() if runner else None))
            if runner is not None:  # weights that were loaded ahead are reported here alone
                self._report_resident(runner)
            time.sleep(seconds)

    def _send(self, message: FromWorker) -> None:
        # A parent that is gone is noticed by `_listen`, and by the kernel.
        with self._send_lock, contextlib.suppress(OSError):
            self._connection.sendall(encode(message))


def _or_end_process(work: Callable[[], None]) -> None:
    """Do it. Of an error its type and place are printed, and not its text, which may be secret."""
    try:
        work()
    except BaseException as error:
        # Where nothing can be printed any more, the exit status is enough.
        with contextlib.suppress(Exception):
            frames = traceback.extract_tb(error.__traceback__)[-_MAX_FRAMES:]
            where = ", ".join(f"{frame.filename}:{frame.lineno}" for frame in reversed(frames))
            sys.stderr.write(f"unexpected {type(error).__name__} at {where}\n")
            sys.stderr.flush()
        os._exit(EXIT_UNEXPECTED)  # no teardown: a broken device may hang it


def main(make_runner: MakeRunner) -> NoReturn:
    """The whole life of a worker process that computes with the runner that `make_runner` returns.

    What takes long, such as to import torch from a cold disk, is for `make_runner` to do: it runs beside heartbeats.
    """
    die_with_parent(parent_pid=int(sys.argv[2]))
    be_ended_first_for_memory()
    keep_memory_private()
    faulthandler.enable(all_threads=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which then ends us
    Worker(socket.socket(fileno=int(sys.argv[1])), make_runner).run()


def _make_runner(config: WorkerConfig) -> JobRunner:
    from workers.worker.runner import Runner  # imports torch

    return Runner(config)


if __name__ == "__main__":
    main(_make_runner)
