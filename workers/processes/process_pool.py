"""The default pool: one spawned, supervised process per device, and the policy of who computes what.

An evaluation is cut into ranges of batches. Whatever device is idle takes the oldest evaluation that nobody
works on, or helps with one that somebody does; the scores are folded in batch order, so that the result is
the same to the bit however it was cut. The parent never imports torch.
"""

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from workers.architectures import UnknownArchitecture, load_architecture
from workers.errors import (
    EmptyData,
    NonFiniteResult,
    NoWorker,
    OutOfMemory,
    WeightsInvalid,
    WorkerCrashed,
)
from workers.messages import BatchDone, Evaluate, Failed, Finished, FromWorker, Loaded
from workers.processes.isolated_python import absolute_path
from workers.processes.pending_evaluation import PendingEvaluation
from workers.processes.quarantine import Quarantine
from workers.processes.supervisor import State, Supervisor, Timeouts
from workers.processes.worker_death import Death
from workers.processes.worker_process import ENTRY_MODULE
from workers.types import (
    BatchScore,
    DeviceKind,
    DeviceStatus,
    EvalJob,
    EvalResult,
    OnEvalProgress,
    WorkerConfig,
)


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
        job = _with_absolute_paths(job)
        self._check(job)
        evaluation = PendingEvaluation(job, _num_batches(job), on_progress)
        self._evaluations.append(evaluation)
        try:
            self._dispatch()
            scores = await evaluation.outcome
            self._quarantine.clear(job)
            return self._result(evaluation, scores)
        except MemoryError:
            raise OutOfMemory("this service has too little memory for the evaluation") from None
        finally:
            self._retire(evaluation)

    def status(self) -> list[DeviceStatus]:
        """One entry per worker, without waiting."""
        return [worker.status() for worker in self._workers]

    async def close(self) -> None:
        """End every worker process, whatever it is doing; returns when none is left."""
        for life in self._supervisor_tasks:
            life.cancel()
        await asyncio.gather(*self._supervisor_tasks, return_exceptions=True)
        self._supervisor_tasks = []
        for evaluation in list(self._evaluations):
            evaluation.fail(NoWorker("the pool was closed"))

    # -- what the supervisors report

    def worker_started(self, worker: Supervisor) -> None:
        """A new process has passed its whole self-test: the faults its device had were not its own."""
        self._quarantine.device_passed(self._workers.index(worker))
        self._judge_all()

    def worker_idle(self, worker: Supervisor) -> None:
        """The worker can take a task."""
        self._note_settled()
        self._dispatch()

    def task_message(self, worker: Supervisor, task: Evaluate, message: FromWorker) -> None:
        """News of a task that nobody has stopped."""
        evaluation = self._by_task[task.task_id]
        match message:
            case Loaded(_, load_seconds):
                evaluation.loaded(worker.config.device, load_seconds, worker.versions)
                self._load_ahead()
            case BatchDone(_, score):
                evaluation.batch_done(score)
            case Finished():
                self._forget(task)
                evaluation.finished(task.task_id)
            case Failed(_, error):
                self._forget(task)
                evaluation.give_back(task.task_id)
                evaluation.fail(error)

    def worker_died(self, worker: Supervisor, death: Death) -> None:
        """The process is gone: what it had in hand goes to another, if it may."""
        index = self._workers.index(worker)
        if death.task:
            evaluation = self._forget(death.task)
            evaluation.worker_died(death.task.task_id)
            num_alike = sum(other.kind == worker.kind for other in self._workers)
            self._quarantine.record_death(evaluation.job, index, num_alike, death.cause)
        elif death.unaccepted_task:
            self._forget(death.unaccepted_task).give_back(death.unaccepted_task.task_id)
        if death.starting or worker.cannot_start:
            self._quarantine.device_failed(index)
        self._note_settled()
        self._judge_all()
        self._dispatch()

    def _judge_all(self) -> None:
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

    # -- policy

    def _check(self, job: EvalJob) -> None:
        if job.data_size < 1:
            raise EmptyData("there are no bytes to evaluate on")
        if refusal := self._quarantine.refusal(job):
            raise refusal
        if not self._supervisor_tasks or self._cannot_start():
            raise NoWorker("no worker is alive, and none will be soon")

    def _dispatch(self) -> None:
        """Give every idle worker something, as long as there is something to give."""
        while idle := [worker for worker in self._workers if worker.idle]:
            chosen = self._next_alone(idle) or self._next_to_help(idle)
            if chosen is None:
                return
            self._assign(*chosen)
        self._load_ahead()

    def _next_alone(self, idle: list[Supervisor]) -> tuple[PendingEvaluation, Supervisor] | None:
        """The oldest evaluation that nobody works on, and the best worker for it."""
        for evaluation in self._evaluations:
            if evaluation.num_free and not evaluation.running:
                worker = self._best_worker(idle, evaluation)
                if worker:
                    return evaluation, worker
        return None

    def _next_to_help(self, idle: list[Supervisor]) -> tuple[PendingEvaluation, Supervisor] | None:
        """The evaluation with most left of those that a further worker makes faster, and that worker."""
        for evaluation in sorted(self._evaluations, key=lambda each: each.num_free, reverse=True):
            worker = self._best_worker(idle, evaluation)
            if worker and evaluation.gains_by(evaluation.job.weights_id in worker.resident):
                return evaluation, worker
        return None

    def _best_worker(self, idle: list[Supervisor], evaluation: PendingEvaluation) -> Supervisor | None:
        """One that holds the weights already, else a GPU, else one that holds least.

        An evaluation stays on devices of one kind, on which it has one result to the bit. One that a worker was
        lost in goes to another device, where there is one.
        """
        weights = evaluation.job.weights_id
        avoided = self._quarantine.suspicious_workers(evaluation.job)
        alike = {
            index: worker
            for index, worker in enumerate(self._workers)
            if evaluation.kind in (None, worker.kind) and not worker.cannot_start
        }
        allowed = [worker for index, worker in alike.items() if index not in avoided]
        return min(
            (worker for worker in allowed or alike.values() if worker in idle),
            key=lambda worker: (
                weights not in worker.resident,
                worker.kind.device == "cpu",
                len(worker.resident),
            ),
            default=None,
        )

    def _load_ahead(self) -> None:
        """All are busy: the worker with least left to do loads the next evaluation's weights meanwhile."""
        waiting = (each for each in self._evaluations if each.num_free and not each.running)
        evaluation = next(waiting, None)
        busy = [
            worker for worker in self._workers if worker.state is State.BUSY and not self._on_trial(worker)
        ]
        if evaluation is None or not busy:
            return
        worker = min(busy, key=self._num_left)
        # A worker that loads, or has no room, refuses; once that has changed it is asked again.
        situation = (worker.task, worker.resident)
        is_resident = any(evaluation.job.weights_id in worker.resident for worker in busy)
        if not is_resident and evaluation.prefetch_asked != situation:
            evaluation.prefetch_asked = situation
            worker.prefetch(evaluation.job)

    def _on_trial(self, worker: Supervisor) -> bool:
        """Whether its task has ended a worker before: if it does so again, nothing else may be the cause."""
        return bool(worker.task and self._quarantine.suspicious_workers(worker.task.job))

    def _num_left(self, worker: Supervisor) -> int:
        """Batches until this busy worker is likely to be free."""
        evaluation = self._by_task[worker.task.task_id] if worker.task else None
        return evaluation.num_left if evaluation else 0

    def _assign(self, evaluation: PendingEvaluation, worker: Supervisor) -> None:
        task_id = next(self._task_ids)
        num_alike = sum(other.kind == worker.kind for other in self._workers)
        batches = evaluation.take(task_id, worker.kind, num_alike)
        self._by_task[task_id] = evaluation
        worker.assign(Evaluate(task_id, evaluation.job, batches.start, batches.stop))

    def _retire(self, evaluation: PendingEvaluation) -> None:
        """It has its outcome, or nobody waits for it any more: free whoever still works on it."""
        self._evaluations.remove(evaluation)
        for worker in self._workers:
            if worker.task and worker.task.task_id in evaluation.running:
                self._forget(worker.task)
                worker.stop_task()

    def _forget(self, task: Evaluate) -> PendingEvaluation:
        return self._by_task.pop(task.task_id)

    def _result(self, evaluation: PendingEvaluation, scores: list[BatchScore]) -> EvalResult:
        """Raises NonFiniteResult."""
        job, architecture = evaluation.job, load_architecture(evaluation.job.architecture_version)
        try:
            mean = architecture.running_mean(scores)
        except architecture.NonFiniteResult as error:
            raise NonFiniteResult(error.detail) from error
        return EvalResult(
            loss=mean.loss,
            cross_entropy=mean.cross_entropy,
            sig_reg=mean.sig_reg,
            embedding=mean.embedding,
            attends_to_future=mean.attends_to_future,
            num_sequences=architecture.num_sequences(job.data_size),
            num_batches=len(scores),
            precision=self._precision,
            device=evaluation.devices,
            load_seconds=evaluation.load_seconds,
            eval_seconds=evaluation.eval_seconds(),
            versions=evaluation.versions,
            token_cross_entropy=_token_cross_entropy(scores) if job.detail else None,
        )

    def _cannot_start(self, kind: DeviceKind | None = None) -> bool:
        """Whether no worker (of this kind) is likely to live soon."""
        return all(worker.cannot_start for worker in self._workers if kind in (None, worker.kind))

    def _note_settled(self) -> None:
        if all(worker.settled for worker in self._workers):
            self._settled.set()


def _with_absolute_paths(job: EvalJob) -> EvalJob:
    return replace(job, weights_path=absolute_path(job.weights_path), data_path=absolute_path(job.data_path))


def _num_batches(job: EvalJob) -> int:
    try:
        architecture = load_architecture(job.architecture_version)
    except UnknownArchitecture as error:
        raise WeightsInvalid(str(error)) from None
    return architecture.num_batches(job.data_size)


def _token_cross_entropy(scores: list[BatchScore]) -> NDArray[np.float32]:
    return np.concatenate(
        [score.token_cross_entropy for score in scores if score.token_cross_entropy is not None]
    )
