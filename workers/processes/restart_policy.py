"""When a device gets its next worker, and whether it is out of service."""

import random

from workers.processes.timeouts import Timeouts
from workers.processes.worker_death import Cause, Death
from workers.types import WeightsId

MAX_FAILED_STARTS = 3
"""Starts in a row without a passed self-test after which a worker is no longer waited for."""
MAX_LOST_TASKS = 3
"""Tasks in a row, of two evaluations or more, whose failure takes a device out of service."""

_DEVICE_MAY_BE_THE_CAUSE = (Cause.FAULT, Cause.ERROR, Cause.HUNG)
_MAX_DOUBLINGS = 16


class RestartPolicy:
    """What follows from the deaths of one device's workers.

    A device on which evaluations fail one after the other is out of service, for longer and longer, until a new
    worker passes its self-test there. One evaluation alone cannot bring that about.
    """

    def __init__(self, timeouts: Timeouts) -> None:
        self._timeouts = timeouts
        self._deaths_in_a_row = 0
        self._failed_starts = 0
        self.last_death = ""
        """How the last worker ended, in words."""
        self._lost_tasks: list[WeightsId] = []
        """Weights of the tasks that ended this device's workers since one was finished."""
        self._times_out_of_service = 0
        self.is_out_of_service = False
        self.is_lost = False
        """Whether a process that cannot be ended holds the device: there is no next start."""

    @property
    def cannot_start(self) -> bool:
        """Whether no worker is likely to run here soon."""
        return self.is_lost or self.is_out_of_service or self._failed_starts >= MAX_FAILED_STARTS

    def self_test_passed(self) -> None:
        """A new worker has passed its whole self-test."""
        self._failed_starts = 0
        self.is_out_of_service = False

    def task_finished(self) -> None:
        """A task was done to its end."""
        self._deaths_in_a_row = self._times_out_of_service = 0
        self._lost_tasks.clear()

    def worker_died(self, death: Death, lifetime_seconds: float) -> None:
        """A worker ended, or could not be started."""
        self.last_death = death.reason
        was_sound = lifetime_seconds > self._timeouts.max_restart_seconds
        self._deaths_in_a_row = 1 if was_sound else self._deaths_in_a_row + 1
        if death.starting:
            self._failed_starts += 1
        self.is_lost = self.is_lost or death.cause is Cause.STUCK
        if death.task and death.cause in _DEVICE_MAY_BE_THE_CAUSE:
            self._lost_tasks.append(death.task.job.weights_id)
            if len(self._lost_tasks) >= MAX_LOST_TASKS and len(set(self._lost_tasks)) > 1:
                self.is_out_of_service = True
                self._times_out_of_service += 1

    def delay_seconds(self) -> float:
        """How long to wait before the next start."""
        if self.is_out_of_service:
            return self._out_of_service_seconds()
        delay = self._timeouts.restart_seconds * 2.0 ** min(self._deaths_in_a_row - 1, _MAX_DOUBLINGS)
        return min(delay, self._timeouts.max_restart_seconds) * random.uniform(0.5, 1.0)

    @property
    def trouble(self) -> str:
        """Why there is no worker now, for an operator; empty before the first death."""
        if self.is_lost:
            return f"lost: the last worker {self.last_death}"
        if self.is_out_of_service:
            return (
                f"out of service: {len(self._lost_tasks)} evaluations in a row ended its worker "
                f"(the last {self.last_death}); is tested after {self._out_of_service_seconds():.0f} s"
            )
        return f"the last worker {self.last_death}" if self.last_death else ""

    def _out_of_service_seconds(self) -> float:
        doublings = min(self._times_out_of_service - 1, _MAX_DOUBLINGS)
        delay = self._timeouts.out_of_service_seconds * 2.0**doublings
        return min(delay, self._timeouts.max_out_of_service_seconds)
