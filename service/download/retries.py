"""How often a download is attempted again, and how long it waits before."""

import random

from service.download.throughput import DownloadLimits
from service.errors import exhaustion_of

_MAX_BACKOFF_SECONDS = 10.0


class Retries:
    """Failures in a row. Enough bytes received in between end the row."""

    def __init__(self, limits: DownloadLimits) -> None:
        self._limits = limits
        self._received_at_failure = 0
        self.num_failures = 0
        self.last_failure: Exception | None = None
        """Of the row; a failure for which this machine itself is short of something is not replaced."""

    @property
    def are_exhausted(self) -> bool:
        """Whether there should be no further attempt."""
        return self.num_failures >= self._limits.max_attempts

    def add(self, failure: Exception, num_received: int) -> None:
        """Count a failure, after so many bytes received in all."""
        if num_received - self._received_at_failure > self._limits.part_bytes // 8:
            self.num_failures, self.last_failure = 0, None
        self._received_at_failure = num_received
        self.num_failures += 1
        if self.last_failure is None or exhaustion_of(self.last_failure) is None:
            self.last_failure = failure

    def backoff_seconds(self) -> float:
        """How long to wait before the next attempt: exponential, with jitter."""
        seconds = self._limits.backoff_seconds * 2.0 ** (self.num_failures - 1)
        return min(seconds, _MAX_BACKOFF_SECONDS) * random.uniform(0.5, 1.0)
