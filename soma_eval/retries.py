"""Whether and when a failed call is tried again: a pure decision from the policy, the failure and the time."""

import random
from dataclasses import dataclass

from .errors import ApiError, SomaEvalError


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how long a call is tried. Only what is `retryable` is tried again, and nothing without end."""

    max_tries: int = 5
    """The first one included; 1 for none again."""
    max_seconds: float = 120.0
    """From the first try on; where the next wait would end later, the failure is raised at once."""
    first_wait_seconds: float = 1.0
    """Where the service names no time to wait; doubled with each try."""


class Retries:
    """The tries of one call."""

    def __init__(self, policy: RetryPolicy, now: float) -> None:
        self._policy = policy
        self.restart(now)

    def restart(self, now: float) -> None:
        """Begin to count anew: the call has advanced."""
        self._num_tries = 0
        self._started = now

    def seconds_to_wait(self, failure: SomaEvalError, now: float) -> float:
        """How long to wait before the next try. Raises the failure where there is to be none."""
        self._num_tries += 1
        wait = self._wait(failure)
        too_late = now + wait > self._started + self._policy.max_seconds
        if not failure.retryable or self._num_tries >= self._policy.max_tries or too_late:
            raise failure
        return wait

    def _wait(self, failure: SomaEvalError) -> float:
        """What the service asks for; else longer each time, and not the same for all clients."""
        asked = failure.retry_after_seconds if isinstance(failure, ApiError) else None
        if asked is not None:
            return asked
        longest = self._policy.first_wait_seconds * 2.0 ** (self._num_tries - 1)
        return longest * random.uniform(0.5, 1.0)
