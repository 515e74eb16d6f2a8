"""A semaphore that requests share by time: the request that has used it least, in seconds, is granted it next."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from service.scoring.fair_order import FairOrder, Use

R = TypeVar("R", bound=Hashable)


@dataclass(eq=False, slots=True)
class Grant(Generic[R]):
    """A part of the capacity that a request waits for, and then holds until it is released."""

    amount: int
    use: Use[R]
    _semaphore: "FairSemaphore[R]" = field(repr=False)
    _granted: asyncio.Future[None]
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
        self._order = FairOrder[R]()
        self._held: Counter[R] = Counter()
        """Units, by request."""
        self._waiters: list[Grant[R]] = []

    @property
    def num_waiting(self) -> int:
        """Grants that are waited for."""
        return len(self._waiters)

    @property
    def oldest_waiting_since(self) -> float | None:
        """When the grant that is waited for the longest was asked for, in seconds since 1970."""
        return min((grant.use.asked_at for grant in self._waiters), default=None)

    @asynccontextmanager
    async def hold(self, request: R, amount: int = 1) -> AsyncIterator[Grant[R]]:
        """Wait for a grant of `amount` units (at least one, at most all), and release it after the block."""
        granted = asyncio.get_running_loop().create_future()
        amount = min(max(1, amount), self._capacity)
        grant = Grant(amount, self._order.ask(request, amount / self._capacity), self, granted)
        self._waiters.append(grant)
        self._hand_out()
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
        self._order.forget(request)
        del self._held[request]

    def _remove_waiter(self, grant: Grant[R]) -> None:
        self._waiters.remove(grant)
        grant.use.end(has_succeeded=False)
        self._hand_out()  # others may have waited only because of this one

    def _release(self, grant: Grant[R], has_succeeded: bool) -> None:
        grant.use.end(has_succeeded=has_succeeded)
        self._held[grant.use.request] -= grant.amount
        self._num_free += grant.amount
        self._hand_out()

    def _hand_out(self) -> None:
        """Grant in order; a waiter for more units than are free is not overtaken."""
        while self._num_free > 0:
            eligible = [waiter for waiter in self._waiters if self._may_hold(waiter)]
            if not eligible:
                return
            next_up = min(eligible, key=lambda waiter: waiter.use.rank)
            if next_up.amount > self._num_free:
                return
            self._waiters.remove(next_up)
            self._grant(next_up)

    def _grant(self, grant: Grant[R]) -> None:
        self._held[grant.use.request] += grant.amount
        self._num_free -= grant.amount
        grant.use.begin()
        grant._granted.set_result(None)

    def _may_hold(self, waiter: Grant[R], without: int = 0) -> bool:
        """Whether its request may hold so much more, once it has given back `without`."""
        if waiter._granted.cancelled():  # and its task has not run since
            return False
        held = self._held[waiter.use.request] - without
        return held == 0 or held + waiter.amount <= self._max_per_request

    def _wants(self, grant: Grant[R]) -> bool:
        request = grant.use.request
        return any(
            self._may_hold(waiter, grant.amount if waiter.use.request is request else 0)
            for waiter in self._waiters
        )
