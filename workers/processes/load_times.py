"""How long it takes until a worker has loaded weights that it does not hold, by what it took of late."""

import statistics
from collections import deque

_NUM_REMEMBERED = 15


class LoadTimes:
    """Of one pool, whose weights are all of one size."""

    def __init__(self) -> None:
        self._latest: deque[float] = deque(maxlen=_NUM_REMEMBERED)
        self.usual = 0.0
        """Seconds; 0 until the first load was seen."""

    def note(self, load_seconds: float, task_seconds: float) -> None:
        """A worker has loaded the weights of a task, in `load_seconds` by its own clock: 0.0 when they were there.

        What counts is the time since it was given the task, in which a node may have been sent the file.
        """
        if load_seconds:
            self._latest.append(task_seconds)
            self.usual = statistics.median(self._latest)
