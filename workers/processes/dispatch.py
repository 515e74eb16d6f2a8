"""Who computes what: which worker gets which evaluation next, and who loads weights ahead.

- An evaluation that no worker has goes before one that some worker has. Among these, what was begun goes on first; of
  the others the one of lowest rank (see `workers.turn`), to which the seconds of a load are added unless an idle worker
  holds its weights. So one whose weights are there overtakes others, and none is overtaken for ever.
- Weights that a busy worker holds count as two loads elsewhere, since that worker need not load them. What is new waits
  for that worker, even if another is idle; not for longer than a load takes, nor where it is known to be busy longer.
- A worker with nothing else to do helps with the evaluation that has most left, where that makes it faster.
- An evaluation stays on devices of one kind, on which it has one result to the bit.
- One that a worker was lost in goes to another device, where there is one.
- While all are busy, they load the weights of those that are next and whose weights lie on no device.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from workers.processes.pending_evaluation import PendingEvaluation
from workers.processes.quarantine import Quarantine
from workers.processes.supervisor import Supervisor
from workers.types import WeightsId


class Assignment(NamedTuple):
    """An evaluation, and the worker that is to evaluate some of it or to load its weights."""

    evaluation: PendingEvaluation
    worker: Supervisor


def next_assignment(
    evaluations: Sequence[PendingEvaluation],
    workers: Sequence[Supervisor],
    quarantine: Quarantine,
    load_seconds: float,
) -> Assignment | None:
    """What an idle worker should do now. `load_seconds`: how long a worker takes to load weights that it lacks."""
    if not any(worker.is_idle for worker in workers):
        return None
    running = [evaluation for evaluation in evaluations if evaluation.is_running]
    waiting = _in_order(_waiting(evaluations), running, workers, load_seconds)
    return _next_to_begin(waiting, workers, quarantine) or _next_to_help(running, workers, quarantine)


def _waiting(evaluations: Iterable[PendingEvaluation]) -> list[PendingEvaluation]:
    """Those that no worker has, and one may take."""
    return [evaluation for evaluation in evaluations if evaluation.num_free and not evaluation.is_running]


def _in_order(
    waiting: Sequence[PendingEvaluation],
    running: Sequence[PendingEvaluation],
    workers: Sequence[Supervisor],
    load_seconds: float,
) -> list[PendingEvaluation]:
    """Those that may begin now, the next one first."""
    busy = [worker for worker in workers if not worker.is_idle]
    here = _held_by(worker for worker in workers if worker.is_idle)
    elsewhere = _held_by(busy)
    soon = _held_by(worker for worker in busy if _seconds_left(worker, running) <= load_seconds)

    def place(evaluation: PendingEvaluation) -> float:
        weights = evaluation.weights_id
        num_loads = 0 if weights in here else 2 if weights in elsewhere else 1
        return -math.inf if evaluation.was_begun else evaluation.rank + num_loads * load_seconds

    def waits_on(evaluation: PendingEvaluation) -> bool:
        return evaluation.is_patient and evaluation.weights_id in soon and evaluation.weights_id not in here

    return sorted((evaluation for evaluation in waiting if not waits_on(evaluation)), key=place)


def _held_by(workers: Iterable[Supervisor]) -> frozenset[WeightsId]:
    """Weights that lie on one of the devices, or are being loaded for a busy one."""
    held: frozenset[WeightsId] = frozenset()
    return held.union(
        *(worker.resident if worker.is_idle else worker.resident | worker.loads for worker in workers)
    )


def _next_to_begin(
    waiting: Sequence[PendingEvaluation], workers: Sequence[Supervisor], quarantine: Quarantine
) -> Assignment | None:
    """The first that an idle worker may take, and the best worker for it."""
    for evaluation in waiting:
        if worker := _best_worker(evaluation, workers, quarantine):
            return Assignment(evaluation, worker)
    return None


def _next_to_help(
    running: Sequence[PendingEvaluation], workers: Sequence[Supervisor], quarantine: Quarantine
) -> Assignment | None:
    """The evaluation with most left of those that a further worker makes faster, and that worker."""
    for evaluation in sorted(running, key=lambda each: each.num_free, reverse=True):
        worker = _best_worker(evaluation, workers, quarantine)
        if worker and evaluation.gains_by(evaluation.weights_id in worker.resident):
            return Assignment(evaluation, worker)
    return None


def _best_worker(
    evaluation: PendingEvaluation, workers: Sequence[Supervisor], quarantine: Quarantine
) -> Supervisor | None:
    """Of the idle workers one that holds the weights already, else a GPU, else one that holds least."""
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
            evaluation.weights_id not in worker.resident,
            worker.kind.device == "cpu",
            len(worker.resident),
        ),
        default=None,
    )


def next_to_load_ahead(
    evaluations: Sequence[PendingEvaluation], workers: Sequence[Supervisor], quarantine: Quarantine
) -> Assignment | None:
    """The next evaluation whose weights lie on no device, and the busy worker that should load them meanwhile.

    A worker whose task has ended a worker before loads nothing: if it dies again, only that task may be the cause.
    """
    able = [
        worker
        for worker in workers
        if worker.can_load_ahead and worker.task and not quarantine.suspicious_workers(worker.task.job)
    ]
    if not able:
        return None
    held = _held_by(workers)
    lacking = [evaluation for evaluation in _waiting(evaluations) if evaluation.weights_id not in held]
    if not lacking:
        return None
    running = [evaluation for evaluation in evaluations if evaluation.is_running]
    return Assignment(
        min(lacking, key=lambda evaluation: (not evaluation.was_begun, evaluation.rank)),
        min(able, key=lambda worker: _num_left(worker, running)),
    )


def _evaluation_on(worker: Supervisor, running: Sequence[PendingEvaluation]) -> PendingEvaluation | None:
    task_id = worker.task.task_id if worker.task else 0
    return next((evaluation for evaluation in running if evaluation.has_task(task_id)), None)


def _num_left(worker: Supervisor, running: Sequence[PendingEvaluation]) -> int:
    """Batches until this busy worker is likely to be free."""
    evaluation = _evaluation_on(worker, running)
    return evaluation.num_left if evaluation else 0


def _seconds_left(worker: Supervisor, running: Sequence[PendingEvaluation]) -> float:
    """Until this busy worker is likely to be free, as far as is known."""
    evaluation = _evaluation_on(worker, running)
    return evaluation.seconds_left if evaluation else 0.0
