"""A policy that is not built: evaluations go to where their weights are, and the pool sees all that wait.

Simulated beside the pool's own policy, to see what it would be worth.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from workers.processes import dispatch, process_pool
from workers.processes.dispatch import Assignment
from workers.processes.pending_evaluation import PendingEvaluation
from workers.processes.quarantine import Quarantine
from workers.processes.supervisor import Supervisor

PATIENCE_SECONDS = 30.0
"""For which an evaluation waits for a busy worker that holds its weights, before another loads them."""


class _TimedEvaluation(PendingEvaluation):
    """Knows when it was asked for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.asked_at = asyncio.get_running_loop().time()


@contextmanager
def resident_first() -> Iterator[None]:
    """Within the block, pools follow this policy."""
    with (
        patch.object(process_pool, "PendingEvaluation", _TimedEvaluation),
        patch.object(process_pool, "next_assignment", _next_assignment),
    ):
        yield


def _next_assignment(
    evaluations: Sequence[_TimedEvaluation], workers: Sequence[Supervisor], quarantine: Quarantine
) -> Assignment | None:
    idle = [worker for worker in workers if worker.is_idle]
    if not idle:
        return None
    waiting = [each for each in evaluations if each.num_free and not each.is_running]
    return (
        _where_it_is(waiting, idle)
        or _elsewhere(waiting, workers, quarantine)
        or dispatch.next_assignment([each for each in evaluations if each.is_running], workers, quarantine)
    )


def _where_it_is(waiting: Sequence[_TimedEvaluation], idle: Sequence[Supervisor]) -> Assignment | None:
    """The oldest whose weights an idle worker holds."""
    for evaluation in waiting:
        for worker in idle:
            if evaluation.job.weights_id in worker.resident:
                return Assignment(evaluation, worker)
    return None


def _elsewhere(
    waiting: Sequence[_TimedEvaluation], workers: Sequence[Supervisor], quarantine: Quarantine
) -> Assignment | None:
    """The oldest whose weights no busy worker holds or is loading, or that has waited for long."""
    busy = [worker for worker in workers if not worker.is_idle]
    soon = frozenset().union(*(worker.resident for worker in busy))
    soon |= {worker.task.job.weights_id for worker in busy if worker.task}
    since = asyncio.get_running_loop().time() - PATIENCE_SECONDS
    eligible = [each for each in waiting if each.job.weights_id not in soon or each.asked_at < since]
    return dispatch.next_assignment(eligible, workers, quarantine)
