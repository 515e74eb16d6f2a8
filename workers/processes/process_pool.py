"""The default pool: one spawned, supervised process per device.

An evaluation is cut into ranges of batches, which `dispatch` hands to the workers. The scores are folded in batch
order, so that the result is the same to the bit however it was cut. The parent never imports torch.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

from workers.architectures import UnknownArchitecture, config_of, load_architecture
from workers.errors import (
    EmptyData,
    EvaluationRefused,
    NoWorker,
    OutOfMemory,
    WeightsInvalid,
    WorkerCrashed,
    WorkerTrouble,
)
from workers.messages import BatchAdvanced, BatchDone, Evaluate, Failed, Finished, FromWorker, Loaded
from workers.processes.begin_times import BeginTimes
from workers.processes.dispatch import next_assignment, next_to_load_ahead
from workers.processes.isolated_python import absolute_path
from workers.processes.pending_evaluation import PendingEvaluation
from workers.processes.process_handle import Spawn, Undelivered
from workers.processes.quarantine import Quarantine
from workers.processes.supervisor import THIS_MACHINE, Place, Supervisor
from workers.processes.timeouts import Timeouts
from workers.processes.worker_death import Cause, Death
from workers.processes.worker_process import ENTRY_MODULE, WorkerProcess
from workers.queue_entry import QueueEntry
from workers.types import (
    MAX_PIECES_BYTES,
    DeviceStatus,
    EvalJob,
    EvalResult,
    OnEvalProgress,
    Precision,
    WorkerConfig,
)

_CLOCK_MARGIN_SECONDS = 0.001
"""By which a timer comes late, so that a wait is over for certain when it does."""


class ProcessPool:
    """A `workers.pool.WorkerPool` of one process per config on this machine, and of those that are added."""

    def __init__(
        self,
        configs: Sequence[WorkerConfig] = (),
        timeouts: Timeouts | None = None,
        entry_module: str = ENTRY_MODULE,
        *,
        precision: Precision = "float32",
        may_grow: bool = False,
        architecture: str = "",
    ) -> None:
        """`precision` and `architecture` are those of workers to come, where there is no config."""
        self._precision = configs[0].precision if configs else precision
        self._architecture = configs[0].architecture if configs else architecture
        self._least_sharing = 2 if may_grow else 1
        """A lone worker is not given a whole evaluation if others may join meanwhile."""
        self._timeouts = timeouts or Timeouts()
        self._worker_numbers = itertools.count()
        self._workers: list[Supervisor] = []
        self._supervisor_tasks: dict[Supervisor, asyncio.Task[None]] = {}
        self._is_started = False
        self._no_worker_reason = "there is no device"
        """Why there was no worker when the last one was removed."""
        self._evaluations: list[PendingEvaluation] = []
        """Oldest first; each from its submission to its outcome."""
        self._by_task: dict[int, PendingEvaluation] = {}
        self._task_ids = itertools.count(1)
        self._quarantine = Quarantine()
        self._begin_times = BeginTimes()
        self._settled = asyncio.Event()
        for config in configs:
            self.add_worker(config, partial(WorkerProcess.spawn, entry_module=entry_module))

    # -- the contract

    async def start(self) -> None:
        """Start every worker; returns when each has passed its self-test. Raises NoWorker if none can."""
        self._is_started = True
        for worker in self._workers:
            self._supervisor_tasks[worker] = asyncio.create_task(worker.run())
        self._note_settled()
        await self._settled.wait()
        if self._cannot_start():
            reason = self._trouble
            await self.close()
            raise NoWorker(f"no worker could start: {reason}")

    async def evaluate(
        self, job: EvalJob, on_progress: OnEvalProgress | None = None, entry: QueueEntry | None = None
    ) -> EvalResult:
        """Evaluate one model on one data set, on every device that is idle.

        Waits for a worker when all are busy. Cancelling the awaiting task stops the work, on the
        device too. `on_progress` is called on the event loop, after each batch, and within one that takes long.
        Raises a `workers.errors.WorkerError`, never anything else.
        """
        async with self._running(job, on_progress, entry) as evaluation:
            return await evaluation.result(self._precision)

    async def evaluate_pieces(
        self, job: EvalJob, entry: QueueEntry | None = None
    ) -> list[EvalResult | EvaluationRefused]:
        """Evaluate one model on several small data sets (`EvalJob.of_pieces`), which share forward passes.

        Returns for each piece, in order, its own result, or why it has none. Cancelling and errors are those of
        `evaluate`.
        """
        if job.data_size > MAX_PIECES_BYTES:
            raise ValueError(f"the pieces of a job have at most {MAX_PIECES_BYTES} bytes")
        async with self._running(job, None, entry) as evaluation:
            return await evaluation.piece_results(self._precision)

    @asynccontextmanager
    async def _running(
        self, job: EvalJob, on_progress: OnEvalProgress | None, entry: QueueEntry | None
    ) -> AsyncIterator[PendingEvaluation]:
        """An evaluation that is given to workers; the block awaits its outcome, and stops it where it ends early."""
        evaluation = self._admit(job, on_progress, entry)
        self._evaluations.append(evaluation)
        loop, times = asyncio.get_running_loop(), self._begin_times
        # For so long it may wait for a busy worker while another is idle: see `dispatch`.
        dispatch_again = [
            loop.call_later(seconds + _CLOCK_MARGIN_SECONDS, self._dispatch)
            for seconds in (times.load_seconds, times.load_seconds + times.send_seconds)
        ]
        try:
            self._dispatch()
            yield evaluation
            self._quarantine.clear(evaluation.job)
        except MemoryError:
            raise OutOfMemory("this service has too little memory for the evaluation") from None
        finally:
            for timer in dispatch_again:
                timer.cancel()
            self._retire(evaluation)

    def status(self) -> list[DeviceStatus]:
        """One entry per worker, without waiting."""
        return [worker.status() for worker in self._workers]

    def nodes(self) -> dict[str, bool]:
        """The machines of its workers, all of which are there."""
        return {worker.place.node: True for worker in self._workers}

    async def close(self) -> None:
        """End every worker process, whatever it is doing; returns when none is left."""
        self._is_started = False
        tasks = list(self._supervisor_tasks.values())
        self._supervisor_tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for evaluation in list(self._evaluations):
            evaluation.fail(NoWorker("the pool was closed"))

    # -- devices that come and go

    def add_worker(self, config: WorkerConfig, spawn: Spawn, place: Place = THIS_MACHINE) -> Supervisor:
        """One more worker; it starts now, or with the pool."""
        worker = Supervisor(next(self._worker_numbers), config, place, self, self._timeouts, spawn)
        self._workers.append(worker)
        if self._is_started:
            self._supervisor_tasks[worker] = asyncio.create_task(worker.run())
        return worker

    async def remove_worker(self, worker: Supervisor, reason: str) -> None:
        """End a worker whose device is no longer there; what it has in hand goes to the others.

        `reason` completes "no worker can start: ".
        """
        task = worker.task if worker.is_evaluating else None
        self._workers.remove(worker)
        self._no_worker_reason = reason
        if task and (evaluation := self._by_task.pop(task.task_id, None)):
            evaluation.machine_lost(task.task_id, worker.place.node)
        self._quarantine.device_failed(worker.number)
        self._after_a_loss()
        if running := self._supervisor_tasks.pop(worker, None):
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    def fail_all(self, error: WorkerTrouble) -> None:
        """Every evaluation that runs or waits fails with this error."""
        for evaluation in list(self._evaluations):
            evaluation.fail(error)

    # -- from a job to a worker and back

    def _admit(
        self, job: EvalJob, on_progress: OnEvalProgress | None, entry: QueueEntry | None
    ) -> PendingEvaluation:
        """The job as an evaluation, if it may have a worker."""
        if job.data_size < 1 or not all(job.pieces):
            raise EmptyData("there are no bytes to evaluate on")
        try:
            config = config_of(load_architecture(job.architecture_version), self._architecture)
        except UnknownArchitecture as error:
            raise WeightsInvalid(str(error)) from None
        if any(len(piece) > config.batch_bytes for piece in job.pieces):
            raise ValueError(f"a piece has at most {config.batch_bytes} bytes")
        job = replace(
            job, weights_path=absolute_path(job.weights_path), data_path=absolute_path(job.data_path)
        )
        if refusal := self._quarantine.refusal(job):
            raise refusal
        if not self._is_started or self._cannot_start():
            raise NoWorker("no worker is alive, and none will be soon")
        return PendingEvaluation(job, config, on_progress, entry)

    def _dispatch(self) -> None:
        """Give every idle worker something, as long as there is something to give."""
        while chosen := next_assignment(
            self._evaluations, self._workers, self._quarantine, self._begin_times
        ):
            evaluation, worker = chosen
            task_id = next(self._task_ids)
            batches = evaluation.take(task_id, worker.kind, max(self._num_alike(worker), self._least_sharing))
            self._by_task[task_id] = evaluation
            worker.assign(Evaluate(task_id, evaluation.job, batches.start, batches.stop))
        if not any(worker.is_idle for worker in self._workers):
            self._load_ahead()

    def _load_ahead(self) -> None:
        while chosen := next_to_load_ahead(
            self._evaluations, self._workers, self._quarantine, self._begin_times
        ):
            evaluation, worker = chosen
            worker.load_ahead(replace(evaluation.job, pieces=()))

    def _retire(self, evaluation: PendingEvaluation) -> None:
        """It has its outcome, or its caller has left: stop the workers that still have some of it."""
        self._evaluations.remove(evaluation)
        for worker in self._workers:
            if worker.task and evaluation.has_task(worker.task.task_id):
                del self._by_task[worker.task.task_id]
                worker.stop_task()

    # -- what the supervisors report

    def worker_started(self, worker: Supervisor) -> None:
        """A new process has passed its whole self-test: the faults its device had were not its own."""
        self._quarantine.device_passed(worker.number)
        self._fail_what_cannot_run()

    def worker_idle(self, worker: Supervisor) -> None:
        """The worker can take a task."""
        self._note_settled()
        self._dispatch()

    def task_message(self, worker: Supervisor, task: Evaluate, message: FromWorker | Undelivered) -> None:
        """A message about a task that was not stopped."""
        evaluation = self._by_task[task.task_id]
        if not isinstance(message, Undelivered):
            device = worker.place.device or worker.config.device
            evaluation.clock.note(task, device, message, worker.place.node)
        match message:
            case Loaded(_, load_seconds):
                evaluation.loaded(worker.config.device, load_seconds, worker.versions)
                self._begin_times.note_loaded(
                    evaluation.weights_id, worker.place.node, load_seconds, worker.task_seconds
                )
                self._load_ahead()
            case BatchAdvanced(task_id, index, fraction):
                evaluation.batch_advanced(task_id, index, fraction)
            case BatchDone(_, score):
                evaluation.batch_done(score)
            case Finished():
                del self._by_task[task.task_id]
                evaluation.task_finished(task.task_id)
                if evaluation.undeliverable:  # perhaps by all others that might go on
                    self._fail_what_cannot_run()
            case Failed(_, OutOfMemory() as error) if self._larger_than(worker, evaluation):
                del self._by_task[task.task_id]
                larger = self._larger_than(worker, evaluation)
                smaller = (each.number for each in self._workers if each not in larger)
                evaluation.needs_more_memory(task.task_id, smaller, error)
                self._fail_what_cannot_run()
            case Failed(_, error):
                del self._by_task[task.task_id]
                evaluation.give_back(task.task_id)
                evaluation.fail(error)
            case Undelivered(_, trouble):
                del self._by_task[task.task_id]
                worker.note_undelivered(trouble.detail)
                evaluation.could_not_be_delivered(task.task_id, worker.number, trouble)
                self._fail_what_cannot_run()

    def _larger_than(self, worker: Supervisor, evaluation: PendingEvaluation) -> list[Supervisor]:
        """Idle workers whose devices have more memory, if the evaluation may be tried on them."""
        if not evaluation.may_try_more_memory(worker.number):
            return []
        return [each for each in self._workers if each.is_idle and each.memory_bytes > worker.memory_bytes]

    def worker_died(self, worker: Supervisor, death: Death) -> None:
        """The process is gone: what it had in hand goes to another, if it may."""
        if death.task:
            evaluation = self._by_task.pop(death.task.task_id)
            if death.cause is Cause.LOST:
                evaluation.machine_lost(death.task.task_id, worker.place.node)
            else:
                evaluation.worker_died(death.task.task_id)
                alike = self._num_alike(worker)
                self._quarantine.record_death(evaluation.job, worker.number, alike, death.cause)
        elif death.unaccepted_task:
            self._by_task.pop(death.unaccepted_task.task_id).give_back(death.unaccepted_task.task_id)
        if death.starting or worker.cannot_start:
            self._quarantine.device_failed(worker.number)
        self._after_a_loss()

    def _after_a_loss(self) -> None:
        self._note_settled()
        self._fail_what_cannot_run()
        self._dispatch()

    def _fail_what_cannot_run(self) -> None:
        """Fail each evaluation that no worker may or can take any more."""
        for evaluation in self._evaluations:
            if refusal := self._quarantine.refusal(evaluation.job):
                evaluation.fail(refusal)
            elif evaluation.is_exhausted and not self._quarantine.awaits_test(evaluation.job):
                evaluation.fail(WorkerCrashed("several workers were lost during this evaluation"))
            elif self._cannot_start():
                evaluation.fail(NoWorker(f"no worker can start: {self._trouble}"))
            elif all(worker.number in evaluation.undeliverable for worker in self._workers_for(evaluation)):
                self._fail_or_start_over(evaluation)

    def _fail_or_start_over(self, evaluation: PendingEvaluation) -> None:
        """No worker of the kind that has begun it can go on: another kind may begin again."""
        if not all(worker.number in evaluation.undeliverable for worker in self._workers_for(None)):
            if not evaluation.is_running:
                evaluation.start_over()
        elif not evaluation.is_running:
            evaluation.fail(next(reversed(evaluation.undeliverable.values())))

    def _workers_for(self, evaluation: PendingEvaluation | None) -> list[Supervisor]:
        """Workers that are likely to run soon, of the kind that has begun the evaluation, or of any."""
        kind = evaluation.kind if evaluation else None
        return [each for each in self._workers if kind in (None, each.kind) and not each.cannot_start]

    def _cannot_start(self) -> bool:
        """Whether no worker is likely to run soon."""
        return not self._workers_for(None)

    @property
    def _trouble(self) -> str:
        """Why no worker can start."""
        return self._workers[0].trouble if self._workers else self._no_worker_reason

    def _num_alike(self, worker: Supervisor) -> int:
        """Workers with a device of the same kind, this one included."""
        return sum(other.kind == worker.kind for other in self._workers)

    def _note_settled(self) -> None:
        if all(worker.is_settled for worker in self._workers):
            self._settled.set()
