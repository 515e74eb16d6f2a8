"""How long a worker has sent nothing, and how long its work has not advanced."""

import time
from collections.abc import Callable

from workers.messages import FromWorker, Heartbeat


class Liveness:
    """Counts the time without a message, and without progress.

    Of a long time in which this process received nothing, as when the whole machine slept, only a moment counts.
    """

    def __init__(self, heartbeat_seconds: float, clock: Callable[[], float] | None = None) -> None:
        self.silent_seconds = 0.0
        self.stalled_seconds = 0.0
        self._most_counted_seconds = 2 * heartbeat_seconds
        self._clock = clock or time.monotonic
        self._last_call = self._clock()
        self._progress = 0

    def task_begins(self) -> None:
        """From now on progress of a new task is waited for."""
        self.stalled_seconds = 0.0

    def observe(self, message: FromWorker | None) -> None:
        """A message was received; None when one was waited for in vain."""
        passed = self.observe_any(message is not None)
        self.stalled_seconds = self.stalled_seconds + passed if self._is_stalled(message) else 0.0
        if isinstance(message, Heartbeat):
            self._progress = message.progress

    def observe_any(self, is_message: bool) -> float:
        """Whether something was received, which says nothing of progress; returns the seconds that count."""
        now = self._clock()
        passed = min(now - self._last_call, self._most_counted_seconds)
        self._last_call = now
        self.silent_seconds = 0.0 if is_message else self.silent_seconds + passed
        return passed

    def _is_stalled(self, message: FromWorker | None) -> bool:
        return message is None or (isinstance(message, Heartbeat) and message.progress == self._progress)
