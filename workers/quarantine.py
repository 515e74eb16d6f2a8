"""Which evaluations end workers: remembered for a while, so that they end no more of them."""

import time
from collections import OrderedDict
from collections.abc import Callable

from workers.types import EvalJob

MAX_DEATHS = 2
"""Workers that one evaluation may end before it is kept from the rest."""

_Culprit = tuple[str, str, str]


class Quarantine:
    """Counts the workers that each pair of weights and data has ended.

    Covers deaths that the evaluation itself brought about (a fault of memory or arithmetic, an abort);
    one that came from outside (a kill, a freeze) proves nothing about the weights and is not recorded.
    """

    def __init__(
        self,
        remember_seconds: float = 600.0,
        max_entries: int = 256,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._remember_seconds = remember_seconds
        self._max_entries = max_entries
        self._clock = clock
        self._deaths: OrderedDict[_Culprit, list[float]] = OrderedDict()

    def record_death(self, job: EvalJob) -> None:
        """A worker died of this job."""
        deaths = self._deaths.setdefault(_culprit(job), [])
        deaths.append(self._clock())
        self._deaths.move_to_end(_culprit(job))
        while len(self._deaths) > self._max_entries:
            self._deaths.popitem(last=False)

    def acquit(self, job: EvalJob) -> None:
        """The job came to a result: what died before did not die of it."""
        self._deaths.pop(_culprit(job), None)

    def holds(self, job: EvalJob) -> bool:
        """Whether the job has recently ended as many workers as it may."""
        since = self._clock() - self._remember_seconds
        deaths = [at for at in self._deaths.get(_culprit(job), ()) if at > since]
        return len(deaths) >= MAX_DEATHS


def _culprit(job: EvalJob) -> _Culprit:
    return job.architecture_version, job.weights_checksum, job.data_path
