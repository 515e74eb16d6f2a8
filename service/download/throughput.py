"""How fast a download must be, and how fast it is.

Two rules bound its time, both from the same two numbers: a download may take `base_timeout_seconds + size /
min_bytes_per_second` in all, and in every window of `base_timeout_seconds` at least `min_bytes_per_second` must be
received. Time in which received bytes wait for this machine's disk does not count.
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
    """Timeouts, retries, and sizes of requests and writes."""

    base_timeout_seconds: float = 30.0
    min_bytes_per_second: float = 1 << 20
    max_attempts: int = 5
    """Failures in a row, and starts from the beginning, before a download is given up."""
    max_redirects: int = 3
    num_connections: int = 4
    """At most, for one file; more than one only if the server honours range requests."""
    part_bytes: int = 32 << 20
    """What one range request asks for."""
    write_bytes: int = 4 << 20
    """What is gathered in memory before it is written."""
    backoff_seconds: float = 0.5
    """Before the second attempt; twice as long before each further one, with jitter."""
    tick_seconds: float = 0.1
    """How often the throughput is checked and progress reported."""
    sync_bytes: int = 32 << 20
    """After so many new bytes the file is synced, and the note for another attempt is replaced."""

    @property
    def idle_seconds(self) -> float:
        """A connection that is silent for so long is replaced by a new one."""
        return min(10.0, self.base_timeout_seconds / 2)


@dataclass(frozen=True, slots=True)
class DownloadProgress:
    """How far a download is."""

    bytes_done: int
    bytes_total: int | None
    bytes_per_second: float
    transfer_seconds: float
    """Since it began, without the time in which received bytes waited for this machine's disk."""


OnDownloadProgress = Callable[[DownloadProgress], None]


class ThroughputMonitor:
    """Counts received bytes, and raises DownloadTimeout when too few are received."""

    def __init__(self, limits: DownloadLimits, kind: BlobKind) -> None:
        self._limits = limits
        self._kind: BlobKind = kind
        self._num_disk_waits = 0
        self._disk_wait_began = self._disk_seconds = 0.0
        self._began = self._window_began = self._now()
        self._bytes_at_window_start = 0
        self._samples = deque([(self._began, 0)])
        self.num_received = 0
        """Bytes in all, including those of attempts that failed."""

    def restart_window(self) -> None:
        """Begin a new window now."""
        self._window_began, self._bytes_at_window_start = self._now(), self.num_received

    @contextlib.contextmanager
    def waiting_for_disk(self) -> Iterator[None]:
        """Within this block nothing is read from a connection, because of this machine's disk."""
        if self._num_disk_waits == 0:
            self._disk_wait_began = time.monotonic()
        self._num_disk_waits += 1
        try:
            yield
        finally:
            self._num_disk_waits -= 1
            if self._num_disk_waits == 0:
                self._disk_seconds += time.monotonic() - self._disk_wait_began

    def _now(self) -> float:
        """A clock that stands still while the download waits for the disk."""
        now = self._disk_wait_began if self._num_disk_waits else time.monotonic()
        return now - self._disk_seconds

    def check(self, expected_bytes: int) -> None:
        """Raise DownloadTimeout after the deadline, or after a window with too few bytes."""
        now, limits = self._now(), self._limits
        if now - self._began > limits.base_timeout_seconds + expected_bytes / limits.min_bytes_per_second:
            raise DownloadTimeout("the file took longer than its size allows", blob=self._kind)
        if now - self._window_began >= limits.base_timeout_seconds:
            in_window = self.num_received - self._bytes_at_window_start
            if in_window < limits.min_bytes_per_second * limits.base_timeout_seconds:
                raise DownloadTimeout("the file came too slowly", blob=self._kind)
            self.restart_window()
        self._samples.append((now, self.num_received))
        while now - self._samples[0][0] > _RATE_WINDOW_SECONDS and len(self._samples) > 2:
            self._samples.popleft()

    @property
    def transfer_seconds(self) -> float:
        """Since the download began, without waiting for the disk."""
        return self._now() - self._began

    @property
    def bytes_per_second(self) -> float:
        """Over the last few seconds."""
        (first, before), (last, after) = self._samples[0], self._samples[-1]
        return (after - before) / (last - first) if last > first else 0.0
