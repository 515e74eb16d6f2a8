"""The default pool: one spawned, supervised process per device.

An evaluation is cut into ranges of batches, which `dispatch` hands to the workers. The scores are folded in batch
order, so that the result is the same to the bit however it was cut. The parent never imports torch.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

from workers.architectures import UnknownArchitecture, load_architecture
from workers.errors import EmptyData, NoWorker, OutOfMemory, WeightsInvalid, WorkerCrashed
from workers.messages import BatchDone, Evaluate, Failed, Finished, FromWorker, Loaded
from workers.processes.dispatch import next_assignment, next_to_load_ahead
from workers.processes.isolated_python import absolute_path
from workers.processes.pending_evaluation import PendingEvaluation
from workers.processes.quarantine import Quarantine
from workers.processes.supervisor import Supervisor
from workers.processes.timeouts import Timeouts
from workers.processes.worker_death import Death
from workers.processes.worker_process import ENTRY_MODULE
from workers.types import DeviceKind, DeviceStatus, EvalJob, EvalResult, OnEvalProgress, WorkerConfig


class ProcessPool:
    """A `workers.pool.WorkerPool` of processes on this machine, one per config."""

    def __init__(
        self,
        configs: Sequence[WorkerConfig],
        timeouts: Timeouts | None = None,
        entry_module: str = ENTRY_MODULE,
    ) -> None:
        self._precision = configs[0].precision
        self._workers = [Supervisor(config, self, timeouts, entry_module) for config in configs]
        self._supervisor_tasks: list[asyncio.Task[None]] = []
        self._evaluations: list[PendingEvaluation] = []
        """Oldest first; each from its submission to its outcome."""
        self._by_task: dict[int, PendingEvaluation] = {}
        self._task_ids = itertools.count(1)
        self._quarantine = Quarantine()
        self._settled = asyncio.Event()
        self._last_prefetch: object = None
        """The weights that a worker was last asked to load ahead, and what it was doing and holding then."""

    # -- the contract

    async def start(self) -> None:
        """Start every worker; returns when each has passed its self-test. Raises NoWorker if none can."""
        self._supervisor_tasks = [asyncio.create_task(worker.run()) for worker in self._workers]
        await self._settled.wait()
        if self._cannot_start():
            await self.close()
            raise NoWorker(f"no worker could start: {self._workers[0].trouble}")

    async def evaluate(self, job: EvalJob, on_progress: OnEvalProgress | None = None) -> EvalResult:
        """Evaluate one model on one data set, on every device that is idle.

        Waits for a worker when all are busy. Cancelling the awaiting task stops the work, on the
        device too. `on_progress` is called on the event loop, after each batch.
        Raises a `workers.errors.WorkerError`, never anything else.
        """
        evaluation = self._admit(job, on_progress)
        self._evaluations.append(evaluation)
        try:
            self._dispatch()
            result = await evaluation.result(self._precision)
            self._quarantine.clear(evaluation.job)
            return result
        except MemoryError:
            raise OutOfMemory("this service has too little memory for the evaluation") from None
        finally:
            self._retire(evaluation)

    def status(self) -> list[DeviceStatus]:
        """One entry per worker, without waiting."""
        return [worker.status() for worker in self._workers]

    async def close(self) -> None:
        """End every worker process, whatever it is doing; returns when none is left."""
        for task in self._supervisor_tasks:
            task.cancel()
        await asyncio.gather(*self._supervisor_tasks, return_exceptions=True)
        self._supervisor_tasks = []
        for evaluation in list(self._evaluations):
            evaluation.fail(NoWorker("the pool was closed"))

    # -- from a job to a worker and back

    def _admit(self, job: EvalJob, on_progress: OnEvalProgress | None) -> PendingEvaluation:
        """The job as an evaluation, if it may have a worker."""
        if job.data_size < 1:
            raise EmptyData("there are no bytes to evaluate on")
        try:
            architecture = load_architecture(job.architecture_version)
        except UnknownArchitecture as error:
            raise WeightsInvalid(str(error)) from None
        job = replace(
            job, weights_path=absolute_path(job.weights_path), data_path=absolute_path(job.data_path)
        )
        if refusal := self._quarantine.refusal(job):
            raise refusal
        if not self._supervisor_tasks or self._cannot_start():
            raise NoWorker("no worker is alive, and none will be soon")
        return PendingEvaluation(job, architecture, on_progress)

    def _dispatch(self) -> None:
        """Give every idle worker something, as long as there is something to give."""
        while chosen := next_assignment(self._evaluations, self._workers, self._quarantine):
            evaluation, worker = chosen
            task_id = next(self._task_ids)
            batches = evaluation.take(task_id, worker.kind, self._num_alike(worker))
            self._by_task[task_id] = evaluation
            worker.assign(Evaluate(task_id, evaluation.job, batches.start, batches.stop))
        if not any(worker.is_idle for worker in self._workers):
            self._load_ahead()

    def _load_ahead(self) -> None:
        if chosen := next_to_load_ahead(self._evaluations, self._workers, self._quarantine):
            evaluation, worker = chosen
            # A worker that loads, or has too little memory, refuses; once that has changed it is asked again.
            asked = (evaluation.job.weights_id, worker.task and worker.task.task_id, worker.resident)
            if asked != self._last_prefetch:
                self._last_prefetch = asked
                worker.prefetch(evaluation.job)

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
        self._quarantine.device_passed(self._workers.index(worker))
        self._fail_what_cannot_run()

    def worker_idle(self, worker: Supervisor) -> None:
        """The worker can take a task."""
        self._note_settled()
        self._dispatch()

    def task_message(self, worker: Supervisor, task: Evaluate, message: FromWorker) -> None:
        """A message about a task that was not stopped."""
        evaluation = self._by_task[task.task_id]
        evaluation.clock.note(task, worker.config.device, message)
        match message:
            case Loaded(_, load_seconds):
                evaluation.loaded(worker.config.device, load_seconds, worker.versions)
                self._load_ahead()
            case BatchDone(_, score):
                evaluation.batch_done(score)
            case Finished():
                del self._by_task[task.task_id]
                evaluation.task_finished(task.task_id)
            case Failed(_, error):
                del self._by_task[task.task_id]
                evaluation.give_back(task.task_id)
                evaluation.fail(error)

    def worker_died(self, worker: Supervisor, death: Death) -> None:
        """The process is gone: what it had in hand goes to another, if it may."""
        index = self._workers.index(worker)
        if death.task:
            evaluation = self._by_task.pop(death.task.task_id)
            evaluation.worker_died(death.task.task_id)
            self._quarantine.record_death(evaluation.job, index, self._num_alike(worker), death.cause)
        elif death.unaccepted_task:
            self._by_task.pop(death.unaccepted_task.task_id).give_back(death.unaccepted_task.task_id)
        if death.starting or worker.cannot_start:
            self._quarantine.device_failed(index)
        self._note_settled()
        self._fail_what_cannot_run()
        self._dispatch()

    def _fail_what_cannot_run(self) -> None:
        """Fail each evaluation that no worker may or can take any more."""
        for evaluation in self._evaluations:
            if refusal := self._quarantine.refusal(evaluation.job):
                evaluation.fail(refusal)
            elif evaluation.is_exhausted and not self._quarantine.awaits_test(evaluation.job):
                evaluation.fail(WorkerCrashed("two workers were lost during this evaluation"))
            elif self._cannot_start():
                evaluation.fail(NoWorker(f"no worker can start: {self._workers[0].trouble}"))
            elif self._cannot_start(evaluation.kind):
                evaluation.start_over()

    def _cannot_start(self, kind: DeviceKind | None = None) -> bool:
        """Whether no worker (of this kind) is likely to run soon."""
        return all(worker.cannot_start for worker in self._workers if kind in (None, worker.kind))

    def _num_alike(self, worker: Supervisor) -> int:
        """Workers with a device of the same kind, this one included."""
        return sum(other.kind == worker.kind for other in self._workers)

    def _note_settled(self) -> None:
        if all(worker.is_settled for worker in self._workers):
            self._settled.set()
