"""A semaphore that requests share by time: the request that has used it least, in seconds, is granted it next.

Each request has a virtual time, which grows by the seconds that it holds the semaphore, times the share of the
capacity that it holds. The waiter of the lowest virtual time is next. A request that begins to wait starts at the
semaphore's own virtual clock, never below: the clock grows by the same seconds, divided by the number of active
requests, so it is what each of them would have used if all had been served evenly. Without the clock, new requests
would always come before one that has been served already; with it, every request that waits is served in turn.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

_EXPECTED_SECONDS_AT_FIRST = 5.0
_WEIGHT_OF_LATEST = 0.2

R = TypeVar("R", bound=Hashable)


@dataclass(slots=True)
class _Account:
    """What one request has used and holds."""

    virtual_seconds: float
    held: int = 0
    num_active: int = 0
    """How often it waits for or holds the semaphore now."""


@dataclass(eq=False, slots=True)
class Grant(Generic[R]):
    """A part of the capacity that a request waits for, and then holds until it is released."""

    request: R
    amount: int
    _semaphore: "FairSemaphore[R]" = field(repr=False)
    _granted: asyncio.Future[None]
    asked_at: float = field(default_factory=time.time)
    """Seconds since 1970."""
    _since: float = 0.0
    _charged_seconds: float = 0.0
    _is_released: bool = False

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits who could be granted what this one holds."""
        return self._semaphore._wants(self)

    def release(self, *, has_succeeded: bool = True) -> None:
        """Give it back; a second call does nothing."""
        if not self._is_released:
            self._is_released = True
            self._semaphore._release(self, has_succeeded)


class FairSemaphore(Generic[R]):
    """`capacity` units shared between requests. One event loop.

    A request holds at most `max_per_request` units at once, or one grant of more than that and nothing beside it.
    """

    def __init__(self, capacity: int, max_per_request: int) -> None:
        self._capacity = capacity
        self._num_free = capacity
        self._max_per_request = max_per_request
        self._accounts: dict[R, _Account] = {}
        self._waiters: list[Grant[R]] = []
        self._clock = 0.0
        self.expected_seconds = _EXPECTED_SECONDS_AT_FIRST
        """How long a grant is held, from those of late whose work succeeded."""

    def resize(self, capacity: int) -> None:
        """From now on there are so many units, all of which one request may hold; what is held stays held."""
        if capacity != self._capacity:
            self._num_free += capacity - self._capacity
            self._capacity = self._max_per_request = capacity
            self._hand_out()

    @property
    def num_waiting(self) -> int:
        """Grants that are waited for."""
        return len(self._waiters)

    @property
    def num_held(self) -> int:
        """Units that are held."""
        return self._capacity - self._num_free

    @property
    def oldest_waiting_since(self) -> float | None:
        """When the grant that is waited for the longest was asked for, in seconds since 1970."""
        return min((grant.asked_at for grant in self._waiters), default=None)

    @property
    def num_active_requests(self) -> int:
        """Requests that wait for or hold a grant."""
        return sum(account.num_active > 0 for account in self._accounts.values())

    @asynccontextmanager
    async def hold(self, request: R, amount: int = 1) -> AsyncIterator[Grant[R]]:
        """Wait for a grant of `amount` units (at least one, at most all), and release it after the block."""
        granted = asyncio.get_running_loop().create_future()
        grant = Grant(request, min(max(1, amount), self._capacity), self, granted)
        self._add_waiter(grant)
        try:
            await granted
        except asyncio.CancelledError:
            if grant in self._waiters:
                self._remove_waiter(grant)
            else:  # it was granted as its waiter was cancelled
                grant.release(has_succeeded=False)
            raise
        try:
            yield grant
            grant.release()
        finally:
            grant.release(has_succeeded=False)

    def forget(self, request: R) -> None:
        """The request has ended."""
        self._accounts.pop(request, None)

    def _add_waiter(self, grant: Grant[R]) -> None:
        account = self._accounts.setdefault(grant.request, _Account(self._clock))
        if account.num_active == 0:  # time in which it neither waited nor held is not saved up
            account.virtual_seconds = max(account.virtual_seconds, self._clock)
        account.num_active += 1
        self._waiters.append(grant)
        self._hand_out()

    def _remove_waiter(self, grant: Grant[R]) -> None:
        self._waiters.remove(grant)
        self._accounts[grant.request].num_active -= 1
        self._hand_out()  # others may have waited only because of this one

    def _release(self, grant: Grant[R], has_succeeded: bool) -> None:
        account = self._accounts[grant.request]
        held_seconds = time.monotonic() - grant._since
        if has_succeeded:
            self.expected_seconds += _WEIGHT_OF_LATEST * (held_seconds - self.expected_seconds)
        used_seconds = self._share_of(grant) * held_seconds
        account.virtual_seconds += used_seconds - grant._charged_seconds
        self._clock += used_seconds / self.num_active_requests
        account.held -= grant.amount
        account.num_active -= 1
        self._num_free += grant.amount
        self._hand_out()

    def _hand_out(self) -> None:
        """Grant in order of virtual time; a waiter for more units than are free is not overtaken."""
        while self._num_free > 0:
            eligible = [waiter for waiter in self._waiters if self._may_hold(waiter)]
            if not eligible:
                return
            next_up = min(eligible, key=lambda waiter: self._accounts[waiter.request].virtual_seconds)
            if next_up.amount > self._num_free:
                return
            self._waiters.remove(next_up)
            self._grant(next_up)

    def _grant(self, grant: Grant[R]) -> None:
        account = self._accounts[grant.request]
        account.held += grant.amount
        self._num_free -= grant.amount
        grant._since = time.monotonic()
        # Charged at once: otherwise one request would be granted everything before any of its use counts.
        grant._charged_seconds = self._share_of(grant) * self.expected_seconds
        account.virtual_seconds += grant._charged_seconds
        grant._granted.set_result(None)

    def _may_hold(self, waiter: Grant[R], without: int = 0) -> bool:
        """Whether its request may hold so much more, once it has given back `without`."""
        if waiter._granted.cancelled():  # and its task has not run since
            return False
        held = self._accounts[waiter.request].held - without
        return held == 0 or held + waiter.amount <= self._max_per_request

    def _wants(self, grant: Grant[R]) -> bool:
        return any(
            self._may_hold(waiter, grant.amount if waiter.request == grant.request else 0)
            for waiter in self._waiters
        )

    def _share_of(self, grant: Grant[R]) -> float:
        return grant.amount / self._capacity
