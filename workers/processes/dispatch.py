"""Who computes what: which worker gets which evaluation next, and who loads weights ahead.

- An evaluation that no worker has goes before one that some worker has. Among these, what was begun goes on first; of
  the others the one of lowest rank (see `workers.queue_entry`), to which is added what an idle worker needs to begin
  it: to load its weights, and to be sent their file. So what is there overtakes others, and none is overtaken for ever.
- Where a busy worker could begin it sooner than an idle one, as it holds the weights or its node the file, what the
  idle one needs longer is added once more, for that would be wasted; and what is new waits for as long, even if a
  worker is idle, unless the busy one is known to be busy for longer.
- A worker with nothing else to do helps with the evaluation that has most left, where that makes it faster.
- An evaluation stays on devices of one kind, on which it has one result to the bit.
- One that a worker was lost in goes to another device, where there is one.
- While all are busy, they load the weights of those that are next and whose weights lie on no device.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from workers.processes.begin_times import BeginTimes
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
    times: BeginTimes,
) -> Assignment | None:
    """What an idle worker should do now."""
    if not any(worker.is_idle for worker in workers):
        return None
    running = [evaluation for evaluation in evaluations if evaluation.is_running]
    waiting = _in_order(_waiting(evaluations), running, workers, times)
    return _next_to_begin(waiting, workers, quarantine, times) or _next_to_help(
        running, workers, quarantine, times
    )


def _waiting(evaluations: Iterable[PendingEvaluation]) -> list[PendingEvaluation]:
    """Those that no worker has, and one may take."""
    return [evaluation for evaluation in evaluations if evaluation.num_free and not evaluation.is_running]


def _in_order(
    waiting: Sequence[PendingEvaluation],
    running: Sequence[PendingEvaluation],
    workers: Sequence[Supervisor],
    times: BeginTimes,
) -> list[PendingEvaluation]:
    """Those that may begin now, the next one first."""
    busy = [worker for worker in workers if not worker.is_idle]
    longest_wait = times.load_seconds + times.send_seconds
    idle_ones = _Group.of(worker for worker in workers if worker.is_idle)
    busy_ones = _Group.of(busy)
    free_soon = _Group.of(worker for worker in busy if _seconds_left(worker, running) <= longest_wait)

    def place(evaluation: PendingEvaluation) -> float:
        if evaluation.was_begun:
            return -math.inf
        here, elsewhere = (times.seconds(evaluation.weights_id, *group) for group in (idle_ones, busy_ones))
        return evaluation.rank + here + max(0.0, here - elsewhere)

    def waits(evaluation: PendingEvaluation) -> bool:
        here, soon = (times.seconds(evaluation.weights_id, *group) for group in (idle_ones, free_soon))
        return not evaluation.was_begun and evaluation.waited_seconds < here - soon

    return sorted((evaluation for evaluation in waiting if not waits(evaluation)), key=place)


class _Group(NamedTuple):
    """Some workers."""

    held: frozenset[WeightsId]
    """Weights that lie on one of their devices, or that a busy one loads."""
    nodes: frozenset[str]

    @classmethod
    def of(cls, workers: Iterable[Supervisor]) -> "_Group":
        workers = list(workers)
        held = frozenset[WeightsId]().union(
            *(worker.resident if worker.is_idle else worker.resident | worker.loads for worker in workers)
        )
        return cls(held, frozenset(worker.place.node for worker in workers))


def _next_to_begin(
    waiting: Sequence[PendingEvaluation],
    workers: Sequence[Supervisor],
    quarantine: Quarantine,
    times: BeginTimes,
) -> Assignment | None:
    """The first that an idle worker may take, and the best worker for it."""
    for evaluation in waiting:
        if worker := _best_worker(evaluation, workers, quarantine, times):
            return Assignment(evaluation, worker)
    return None


def _next_to_help(
    running: Sequence[PendingEvaluation],
    workers: Sequence[Supervisor],
    quarantine: Quarantine,
    times: BeginTimes,
) -> Assignment | None:
    """The evaluation with most left of those that a further worker makes faster, and that worker."""
    for evaluation in sorted(running, key=lambda each: each.num_free, reverse=True):
        worker = _best_worker(evaluation, workers, quarantine, times)
        if worker is None:
            continue
        begin_seconds = times.seconds(evaluation.weights_id, worker.resident, {worker.place.node})
        # Before its first batch is done, how long it takes is not known: no node is sent a file on the chance.
        is_known = evaluation.seconds_left > 0.0
        if (is_known or begin_seconds <= times.load_seconds) and evaluation.gains_by(begin_seconds):
            return Assignment(evaluation, worker)
    return None


def _best_worker(
    evaluation: PendingEvaluation, workers: Sequence[Supervisor], quarantine: Quarantine, times: BeginTimes
) -> Supervisor | None:
    """Of the idle workers the one that can begin first, else a GPU, else one that holds least."""
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
            times.seconds(evaluation.weights_id, worker.resident, {worker.place.node}),
            worker.kind.device == "cpu",
            len(worker.resident),
        ),
        default=None,
    )


def next_to_load_ahead(
    evaluations: Sequence[PendingEvaluation],
    workers: Sequence[Supervisor],
    quarantine: Quarantine,
    times: BeginTimes,
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
    everyone = _Group.of(workers)
    running = [evaluation for evaluation in evaluations if evaluation.is_running]
    lacking = [
        evaluation for evaluation in _waiting(evaluations) if evaluation.weights_id not in everyone.held
    ]
    for evaluation in sorted(lacking, key=lambda each: (not each.was_begun, each.rank)):
        near = [worker for worker in able if times.is_on(evaluation.weights_id, {worker.place.node})]
        # Sending a file to a second node is not worth it where that takes longer than the load that it would save.
        is_far = (
            times.is_on(evaluation.weights_id, everyone.nodes) and times.send_seconds > times.load_seconds
        )
        if near or not is_far:
            return Assignment(evaluation, min(near or able, key=lambda worker: _num_left(worker, running)))
    return None


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
