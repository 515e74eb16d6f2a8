"""Who computes what: which worker gets which evaluation next, and who loads weights ahead.

- An evaluation that no worker has goes before one that some worker has; among these, the oldest first.
- A worker with nothing else to do helps with the evaluation that has most left, where that makes it faster.
- An evaluation stays on devices of one kind, on which it has one result to the bit.
- One that a worker was lost in goes to another device, where there is one.
- While all are busy, the worker with least left to do loads the weights of the evaluation that is next.
"""

from collections.abc import Sequence
from typing import NamedTuple

from workers.processes.pending_evaluation import PendingEvaluation
from workers.processes.quarantine import Quarantine
from workers.processes.supervisor import Supervisor


class Assignment(NamedTuple):
    """An evaluation, and the worker that is to evaluate some of it or to load its weights."""

    evaluation: PendingEvaluation
    worker: Supervisor


def next_assignment(
    evaluations: Sequence[PendingEvaluation], workers: Sequence[Supervisor], quarantine: Quarantine
) -> Assignment | None:
    """What an idle worker should do now; `evaluations` are in the order in which they were asked for."""
    return _next_to_begin(evaluations, workers, quarantine) or _next_to_help(evaluations, workers, quarantine)


def _next_to_begin(
    evaluations: Sequence[PendingEvaluation], workers: Sequence[Supervisor], quarantine: Quarantine
) -> Assignment | None:
    """The oldest evaluation that no worker has, and the best worker for it."""
    for evaluation in evaluations:
        if evaluation.num_free and not evaluation.is_running:
            worker = _best_worker(evaluation, workers, quarantine)
            if worker:
                return Assignment(evaluation, worker)
    return None


def _next_to_help(
    evaluations: Sequence[PendingEvaluation], workers: Sequence[Supervisor], quarantine: Quarantine
) -> Assignment | None:
    """The evaluation with most left of those that a further worker makes faster, and that worker."""
    for evaluation in sorted(evaluations, key=lambda each: each.num_free, reverse=True):
        worker = _best_worker(evaluation, workers, quarantine)
        if worker and evaluation.gains_by(evaluation.job.weights_id in worker.resident):
            return Assignment(evaluation, worker)
    return None


def _best_worker(
    evaluation: PendingEvaluation, workers: Sequence[Supervisor], quarantine: Quarantine
) -> Supervisor | None:
    """Of the idle workers one that holds the weights already, else a GPU, else one that holds least."""
    weights = evaluation.job.weights_id
    suspicious = quarantine.suspicious_workers(evaluation.job)
    alike = [
        worker
        for worker in workers
        if evaluation.kind in (None, worker.kind)
        and not worker.cannot_start
        and worker.number not in evaluation.undeliverable
    ]
    preferred = [worker for worker in alike if worker.number not in suspicious]
    return min(
        (worker for worker in preferred or alike if worker.is_idle),
        key=lambda worker: (
            bool(worker.lacks_files),
            weights not in worker.resident,
            worker.kind.device == "cpu",
            len(worker.resident),
        ),
        default=None,
    )


def next_to_load_ahead(
    evaluations: Sequence[PendingEvaluation], workers: Sequence[Supervisor], quarantine: Quarantine
) -> Assignment | None:
    """The oldest evaluation that waits, and the busy worker that should load its weights meanwhile.

    A worker whose task has ended a worker before loads nothing: if it dies again, only that task may be the cause.
    """
    waiting = next((each for each in evaluations if each.num_free and not each.is_running), None)
    busy = [
        worker
        for worker in workers
        if worker.is_evaluating and worker.task and not quarantine.suspicious_workers(worker.task.job)
    ]
    if waiting is None or not busy or any(waiting.job.weights_id in worker.resident for worker in busy):
        return None
    return Assignment(waiting, min(busy, key=lambda worker: _num_left(worker, evaluations)))


def _num_left(worker: Supervisor, evaluations: Sequence[PendingEvaluation]) -> int:
    """Batches until this busy worker is likely to be free."""
    task_id = worker.task.task_id if worker.task else 0
    return next((each.num_left for each in evaluations if each.has_task(task_id)), 0)
