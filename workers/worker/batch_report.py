"""How far a slow batch is, said now and then: a quick one needs no word until it is done."""

import time
from collections.abc import Callable

from workers.messages import BatchAdvanced

SLOW_BATCH_SECONDS = 1.0
"""A batch that takes less is not reported."""
EVERY_SECONDS = 0.25


class BatchReport:
    """The reports of one task."""

    def __init__(
        self,
        task_id: int,
        first: int,
        send: Callable[[BatchAdvanced], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._task_id = task_id
        self._send = send
        self._clock = clock
        self.batch_begins(first)

    def batch_begins(self, index: int) -> None:
        """The batch that is computed from now on."""
        self._index = index
        self._next = self._clock() + SLOW_BATCH_SECONDS

    def advanced(self, fraction: float) -> None:
        """That fraction of it is done, 0 to 1."""
        now = self._clock()
        if now >= self._next:
            self._next = now + EVERY_SECONDS
            self._send(BatchAdvanced(self._task_id, self._index, fraction))
