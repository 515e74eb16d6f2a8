"""What the last hour was like, minute by minute: answers, failures, the length of the phases. In memory, bounded."""

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from service.errors import Fault

Phase = Literal["queue", "download", "load", "eval"]
PHASES: tuple[Phase, ...] = ("queue", "download", "load", "eval")

NUM_MINUTES = 60
_LEAST_SECONDS = 0.001
"""What takes less counts as nothing."""
_GROWTH = 1.1
"""Of one bucket to the next: a quantile is right to 5 %."""


class Durations:
    """How long something took, as counts in buckets that grow by a constant factor."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one duration."""
        bucket = -1 if seconds < _LEAST_SECONDS else int(math.log(seconds / _LEAST_SECONDS, _GROWTH))
        self._counts[bucket] += 1

    def quantile(self, share: float) -> float | None:
        """Seconds within which this share of them ended; None where there are none."""
        rank = math.ceil(share * self._counts.total())
        for bucket in sorted(self._counts):
            rank -= self._counts[bucket]
            if rank <= 0:
                return 0.0 if bucket < 0 else _LEAST_SECONDS * _GROWTH ** (bucket + 0.5)
        return None

    @classmethod
    def all_of(cls, parts: Iterable["Durations"]) -> "Durations":
        """Those of several minutes together."""
        whole = cls()
        for part in parts:
            whole._counts.update(part._counts)
        return whole


@dataclass(eq=False, slots=True)
class Minute:
    """One minute of the service."""

    number: int
    """Minutes since 1970."""
    num_served: int = 0
    failures: Counter[tuple[Fault, str]] = field(default_factory=Counter)
    """By whose fault it was, and code."""
    phases: dict[Phase, Durations] = field(default_factory=lambda: {phase: Durations() for phase in PHASES})


class LastHour:
    """The last 60 minutes. One event loop."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since 1970."""
        self._clock = clock
        self._minutes: deque[Minute] = deque(maxlen=NUM_MINUTES)
        self.version = 0
        """Grows with everything that is noted."""

    def note(self, outcome: str, fault: Fault | None) -> None:
        """A scoring request or a job has ended: "ok", or the code of the error that is somebody's fault.

        Others, whose client has left, do not count.
        """
        if fault is not None:
            self._now().failures[fault, outcome] += 1
        elif outcome == "ok":
            self._now().num_served += 1

    def note_phase(self, phase: Phase, seconds: float) -> None:
        """A phase of one model's evaluation has ended."""
        self._now().phases[phase].add(seconds)

    def this_minute(self) -> int:
        """Minutes since 1970."""
        return int(self._clock() // 60)

    def minutes(self) -> list[Minute]:
        """All 60, the oldest first; the last one is not over yet."""
        number = self.this_minute()
        known = {minute.number: minute for minute in self._minutes}
        return [known.get(n) or Minute(n) for n in range(number - NUM_MINUTES + 1, number + 1)]

    def _now(self) -> Minute:
        self.version += 1
        number = self.this_minute()
        if not self._minutes or self._minutes[-1].number < number:
            self._minutes.append(Minute(number))
        return self._minutes[-1]  # also where the clock was set back
