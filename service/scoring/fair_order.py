"""The order in which requests are served that share something by time: who has used least of it, in seconds, is next.

Each request has a virtual time, which grows by the seconds that it uses the thing, times the share of it that it uses.
Whoever waits with the lowest virtual time is next. A request that begins to wait starts at the order's own virtual
clock, never below: the clock grows by the same seconds, divided by the number of active requests, so it is what each of
them would have used if all had been served evenly. Without the clock, new requests would always come before one that
has been served already; with it, every request that waits is served in turn.
"""

import time
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_EXPECTED_SECONDS_AT_FIRST = 5.0
_WEIGHT_OF_LATEST = 0.2

R = TypeVar("R", bound=Hashable)


@dataclass(slots=True)
class _Account:
    """What one request has used."""

    virtual_seconds: float
    num_active: int = 0
    """How often it waits or is served now."""


@dataclass(eq=False, slots=True)
class Use(Generic[R]):
    """One use of the thing: waited for from the start, then begun, perhaps, and then ended."""

    request: R
    share: float
    """How much of the thing it uses, 1 for all."""
    _order: "FairOrder[R]" = field(repr=False)
    asked_at: float = field(default_factory=time.time)
    """Seconds since 1970."""
    asked: float = field(default_factory=time.monotonic)
    """The same on the monotonic clock."""
    _began: float | None = None
    _charged_seconds: float = 0.0

    @property
    def rank(self) -> float:
        """The virtual time of its request, in seconds: the lowest is next."""
        return self._order._accounts[self.request].virtual_seconds

    @property
    def was_begun(self) -> bool:
        """Whether it waits no longer."""
        return self._began is not None

    @property
    def waited_seconds(self) -> float:
        """Until it was begun, or until now."""
        return (time.monotonic() if self._began is None else self._began) - self.asked

    def begin(self) -> None:
        """It is served from now on."""
        self._began = time.monotonic()
        # Charged at once: otherwise one request would be served everything before any of its use counts.
        self._charged_seconds = self.share * self._order.expected_seconds
        self._order._accounts[self.request].virtual_seconds += self._charged_seconds

    def end(self, *, has_succeeded: bool) -> None:
        """It has ended, or is not waited for any more; how long it took tells how long others will, if it succeeded."""
        if self._began is not None:
            self._order._settle(self, time.monotonic() - self._began, has_succeeded)
        self._order._accounts[self.request].num_active -= 1


class FairOrder(Generic[R]):
    """Of one thing. One event loop."""

    def __init__(self) -> None:
        self._accounts: dict[R, _Account] = {}
        self._clock = 0.0
        self.expected_seconds = _EXPECTED_SECONDS_AT_FIRST
        """How long a use takes, from those of late that succeeded."""

    @property
    def num_active_requests(self) -> int:
        """Requests that wait or are served."""
        return sum(account.num_active > 0 for account in self._accounts.values())

    def ask(self, request: R, share: float = 1.0) -> Use[R]:
        """One use, which waits from now on. Whoever asks must end it."""
        account = self._accounts.setdefault(request, _Account(self._clock))
        if account.num_active == 0:  # time in which it neither waited nor was served is not saved up
            account.virtual_seconds = max(account.virtual_seconds, self._clock)
        account.num_active += 1
        return Use(request, share, self)

    def forget(self, request: R) -> None:
        """The request has ended, and each use of it."""
        self._accounts.pop(request, None)

    def _settle(self, use: Use[R], used_seconds: float, has_succeeded: bool) -> None:
        if has_succeeded:
            self.expected_seconds += _WEIGHT_OF_LATEST * (used_seconds - self.expected_seconds)
        self._accounts[use.request].virtual_seconds += use.share * used_seconds - use._charged_seconds
        self._clock += use.share * used_seconds / self.num_active_requests
