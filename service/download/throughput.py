"""How fast a download must be, how fast it is, and whether another connection helps.

Two rules bound the time, both from the same two numbers: a download may take `base_timeout_seconds + size /
min_bytes_per_second` in all, and no stretch of `base_timeout_seconds` may bring fewer than `min_bytes_per_second`.
Time in which bytes that came wait for our own disk is not the publisher's, and does not count.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.errors import BlobKind, DownloadTimeout

_RATE_WINDOW_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """How patient a download is, and how greedy."""

    base_timeout_seconds: float = 30.0
    min_bytes_per_second: float = 1 << 20
    max_attempts: int = 5
    """Failures in a row, and starts from nothing, until a download is given up."""
    max_redirects: int = 3
    num_connections: int = 4
    """At most, for one file; more than one only where it helps."""
    part_bytes: int = 64 << 20
    """What one range request asks for."""
    write_bytes: int = 4 << 20
    ramp_seconds: float = 1.0
    """How long a number of connections is tried before one is added."""
    backoff_seconds: float = 0.5
    """Before the second attempt; twice as long before each further one, with jitter."""
    tick_seconds: float = 0.1
    checkpoint_bytes: int = 32 << 20
    """So much is worth keeping for another attempt, and a new note of it."""

    @property
    def idle_seconds(self) -> float:
        """A connection that is silent for so long is given up for a new one."""
        return min(10.0, self.base_timeout_seconds / 2)


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a download is."""

    bytes_done: int
    bytes_total: int | None
    bytes_per_second: float
    asked_seconds: float
    """How long bytes have been asked for; our own work on the disk is left out."""


OnDownloadProgress = Callable[[DownloadProgress], None]


class ThroughputMonitor:
    """Counts what comes, and raises DownloadTimeout when it comes too slowly."""

    def __init__(self, limits: DownloadLimits, kind: BlobKind) -> None:
        self._limits = limits
        self._kind: BlobKind = kind
        self._num_waiting = 0
        self._waiting_since = self._own_seconds = 0.0
        self._began = self._window_began = self._now()
        self._samples = deque([(self._began, 0)])
        self._window_start_bytes = 0
        self.received = 0
        """Bytes in all, those that were of no use included."""

    def begin_stretch(self) -> None:
        """What lies behind is no measure of what comes."""
        self._window_began, self._window_start_bytes = self._now(), self.received

    @contextlib.contextmanager
    def own_work(self) -> Iterator[None]:
        """A connection is not read from, as long as this block takes, because of our own disk."""
        if self._num_waiting == 0:
            self._waiting_since = time.monotonic()
        self._num_waiting += 1
        try:
            yield
        finally:
            self._num_waiting -= 1
            if self._num_waiting == 0:
                self._own_seconds += time.monotonic() - self._waiting_since

    def _now(self) -> float:
        """A clock that stands still during our own work."""
        now = self._waiting_since if self._num_waiting else time.monotonic()
        return now - self._own_seconds

    def check(self, expected_bytes: int) -> None:
        """Raise DownloadTimeout after the deadline or a stretch with too little in it."""
        now, limits = self._now(), self._limits
        if now - self._began > limits.base_timeout_seconds + expected_bytes / limits.min_bytes_per_second:
            raise DownloadTimeout("the file took longer than its size allows", blob=self._kind)
        if now - self._window_began >= limits.base_timeout_seconds:
            came = self.received - self._window_start_bytes
            if came < limits.min_bytes_per_second * limits.base_timeout_seconds:
                raise DownloadTimeout("the file came too slowly", blob=self._kind)
            self._window_began, self._window_start_bytes = now, self.received
        self._samples.append((now, self.received))
        while now - self._samples[0][0] > _RATE_WINDOW_SECONDS and len(self._samples) > 2:
            self._samples.popleft()

    @property
    def asked_seconds(self) -> float:
        """Since it began, our own work left out."""
        return self._now() - self._began

    @property
    def bytes_per_second(self) -> float:
        """Over the last few seconds."""
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / (last - first) if last > first else 0.0


class ConnectionScaling:
    """Decides when another connection is worth a try: as long as the last one added brought something."""

    def __init__(self, limits: DownloadLimits) -> None:
        self._limits = limits
        self.most = limits.num_connections
        self._since = time.monotonic()
        self._received = 0
        self._best_rate = 0.0

    def wants_another(self, num_parts: int, received: int) -> bool:
        """Called now and then with the connections there are and the bytes received in all."""
        seconds = time.monotonic() - self._since
        if num_parts >= self.most or seconds < self._limits.ramp_seconds:
            return False
        rate = (received - self._received) / seconds
        self._since, self._received = time.monotonic(), received
        if rate == 0:
            return False
        if rate < 1.1 * self._best_rate:
            self.most = num_parts
            return False
        self._best_rate = rate
        return True
