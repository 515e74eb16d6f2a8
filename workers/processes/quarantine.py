"""Which evaluations ended workers: remembered for a while, so that they end no more of them.

An evaluation is blamed only for faults (see `worker_death`), only when two different devices had one, and only
after each of these devices has passed its self-test again. All else is this machine's trouble: an evaluation
whose workers are lost again and again is refused for a short while, as the service's trouble, so that it does
not take one worker after the other.
"""

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from workers.errors import EvaluationCrashesWorker, OutOfMemory, WorkerCrashed, WorkerError
from workers.processes.worker_death import Cause
from workers.types import EvalJob

MAX_FAULTS = 2
"""Faults on sound devices after which an evaluation is blamed."""
MAX_DEATHS = 4
"""Workers that one evaluation may lose, in several requests, before it must wait."""

_JobKey = tuple[str, str, str]


@dataclass(slots=True)
class _RecordedDeath:
    """A worker that was lost during a job."""

    worker: int
    num_alike: int
    cause: Cause
    at: float
    device_is_sound: bool = False


class Quarantine:
    """Remembers, for each pair of weights and data, the workers that were lost during its evaluation."""

    def __init__(
        self,
        remember_seconds: float = 600.0,
        wait_seconds: float = 60.0,
        max_entries: int = 256,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._remember_seconds = remember_seconds
        self._wait_seconds = wait_seconds
        self._max_entries = max_entries
        self._clock = clock or time.monotonic
        self._deaths: OrderedDict[_JobKey, list[_RecordedDeath]] = OrderedDict()

    def record_death(self, job: EvalJob, worker: int, num_alike: int, cause: Cause) -> None:
        """A worker was lost during this job; `num_alike` workers of the pool have a device of its kind."""
        deaths = self._deaths.setdefault(_job_key(job), [])
        deaths.append(_RecordedDeath(worker, num_alike, cause, self._clock()))
        self._deaths.move_to_end(_job_key(job))
        while len(self._deaths) > self._max_entries:
            self._deaths.popitem(last=False)

    def device_passed(self, worker: int) -> None:
        """The worker's device passed its whole self-test: the faults it had were not its own."""
        for death in self._untested():
            if death.worker == worker:
                death.device_is_sound = True

    def device_failed(self, worker: int) -> None:
        """The worker's device did not pass: the faults it had say nothing about any evaluation."""
        for death in self._untested():
            if death.worker == worker:
                death.cause = Cause.ERROR

    def clear(self, job: EvalJob) -> None:
        """The job has a result: no worker was lost because of it."""
        self._deaths.pop(_job_key(job), None)

    def awaits_test(self, job: EvalJob) -> bool:
        """Whether a device that had a fault during this job has not been tested since."""
        return any(_is_untested(death) for death in self._recent(job))

    def suspicious_workers(self, job: EvalJob) -> set[int]:
        """Workers that had trouble of their own during this job: another device should try it."""
        causes = (Cause.FAULT, Cause.ERROR, Cause.HUNG)
        return {death.worker for death in self._recent(job) if death.cause in causes}

    def refusal(self, job: EvalJob) -> WorkerError | None:
        """Why the job may have no further worker now; None when it may."""
        deaths = self._recent(job)
        faults = [death for death in deaths if death.cause is Cause.FAULT and death.device_is_sound]
        devices = {death.worker for death in faults}
        if len(faults) >= MAX_FAULTS and len(devices) >= min(MAX_FAULTS, faults[-1].num_alike):
            return EvaluationCrashesWorker("this evaluation has recently ended two workers")
        if len(deaths) < MAX_DEATHS or deaths[-1].at <= self._clock() - self._wait_seconds:
            return None
        if deaths[-1].cause is Cause.KILLED:
            return OutOfMemory("the system has killed several workers during this evaluation")
        return WorkerCrashed("several workers have recently been lost during this evaluation")

    def _recent(self, job: EvalJob) -> list[_RecordedDeath]:
        since = self._clock() - self._remember_seconds
        return [death for death in self._deaths.get(_job_key(job), ()) if death.at > since]

    def _untested(self) -> list[_RecordedDeath]:
        return [death for deaths in self._deaths.values() for death in deaths if _is_untested(death)]


def _is_untested(death: _RecordedDeath) -> bool:
    return death.cause is Cause.FAULT and not death.device_is_sound


def _job_key(job: EvalJob) -> _JobKey:
    return job.architecture_version, job.weights_checksum, job.data_checksum or job.data_path
