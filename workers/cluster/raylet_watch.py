"""Whether the raylet of a node is stopped: Ray itself tells of that after a minute, unless its health checks are tuned.

An actor goes on without its raylet, but nothing can be brought to its node, and nothing else can start there.
"""

import time
from collections.abc import Callable
from pathlib import Path


class RayletWatch:
    """Counts how long a process, which need not be a child of this one, has been stopped (SIGSTOP)."""

    def __init__(self, pid: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._stat = Path(f"/proc/{pid}/stat")
        self._clock = clock
        self._stopped_since: float | None = None

    def stopped_seconds(self) -> float:
        """Since the first call that found it stopped; 0.0 while it runs, and when it is gone."""
        if not self._is_stopped():
            self._stopped_since = None
            return 0.0
        now = self._clock()
        self._stopped_since = now if self._stopped_since is None else self._stopped_since
        return now - self._stopped_since

    def _is_stopped(self) -> bool:
        try:
            return self._stat.read_text().rpartition(")")[2].split()[0] == "T"
        except OSError:  # gone, or no Linux
            return False
