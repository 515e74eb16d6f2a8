"""Who may start, and when: admission, fair order, deadlines and draining. Policy only.

A request is admitted (or told queue-full) before a byte is fetched for it and holds its ticket to its end.
Each of its models then waits for a place among the weights that are fetched or kept at once, so that their
files fit on the disk, and, once they are here, for its turn to be evaluated. Both go round: the request
served fewest times so far is next, the older one on a tie, so that a competition of fifty models does not
keep a single evaluation waiting.
"""

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from service.errors import DeadlineExceeded, Draining, QueueFull

_TURN_SECONDS_AT_FIRST = 5.0
_WEIGHT_OF_LATEST = 0.2


@dataclass(eq=False, slots=True)
class Ticket:
    """One admitted request."""

    number: int
    num_evaluations: int
    num_finished: int = 0


@dataclass(eq=False, slots=True)
class _Waiter:
    ticket: Ticket
    num_places: int
    came: asyncio.Future[None]


class _FairPlaces:
    """A number of places, handed out in fair order; a request holds at most so many at once."""

    def __init__(self, num_places: int, max_per_request: int) -> None:
        self._num_free = num_places
        self._max_per_request = max_per_request
        self._waiters: list[_Waiter] = []
        self._num_served: Counter[Ticket] = Counter()
        self._num_held: Counter[Ticket] = Counter()

    @property
    def num_waiting(self) -> int:
        return len(self._waiters)

    @asynccontextmanager
    async def hold(self, ticket: Ticket, num_places: int = 1) -> AsyncIterator[None]:
        """Wait for places, fewer if a request may not hold so many, and hold them for the length of the block."""
        num_places = min(num_places, self._max_per_request)
        waiter = _Waiter(ticket, num_places, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._hand_out()
        try:
            await waiter.came
        except asyncio.CancelledError:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
                self._hand_out()  # it may have been all that others waited behind
            else:  # the places came as their holder left
                self._give_back(waiter)
            raise
        try:
            yield
        finally:
            self._give_back(waiter)

    def forget(self, ticket: Ticket) -> None:
        """The request has ended."""
        del self._num_served[ticket], self._num_held[ticket]

    def _give_back(self, holder: _Waiter) -> None:
        self._num_free += holder.num_places
        self._num_held[holder.ticket] -= holder.num_places
        self._hand_out()

    def _hand_out(self) -> None:
        """Nobody overtakes one who waits for several places to be free at once."""
        while eligible := [waiter for waiter in self._waiters if self._may_hold(waiter)]:
            next_up = min(
                eligible, key=lambda waiter: (self._num_served[waiter.ticket], waiter.ticket.number)
            )
            if next_up.num_places > self._num_free:
                return
            self._waiters.remove(next_up)
            self._num_free -= next_up.num_places
            self._num_served[next_up.ticket] += 1
            self._num_held[next_up.ticket] += next_up.num_places
            next_up.came.set_result(None)

    def _may_hold(self, waiter: _Waiter) -> bool:
        has_left = waiter.came.cancelled()  # and its task has not run since
        return not has_left and self._num_held[waiter.ticket] + waiter.num_places <= self._max_per_request


class Scheduler:
    """Admits at most `queue_size` requests, and lets at most `max_running` evaluations run.

    At most `max_weights_held` weights are fetched or here at once, fewer if they take more than `kept_bytes` in all.
    """

    def __init__(
        self,
        *,
        queue_size: int,
        max_running: int,
        max_weights_held: int,
        kept_bytes: int,
        timeout_seconds: float,
    ) -> None:
        self._queue_size = queue_size
        self._max_running = max_running
        self._turns = _FairPlaces(max_running, max_per_request=max_running)
        # One request of slow publishers leaves others half of the places.
        self._kept = _FairPlaces(max_weights_held, max_per_request=(max_weights_held + 1) // 2)
        self._bytes_per_place = max(1, kept_bytes // max_weights_held)
        self._timeout_seconds = timeout_seconds
        self._tickets: dict[Ticket, asyncio.Timeout] = {}
        self._numbers = itertools.count()
        self._turn_seconds = _TURN_SECONDS_AT_FIRST
        self._drained = asyncio.Event()
        self._draining = False
        self._ended = False

    @property
    def num_admitted(self) -> int:
        """Requests that hold a ticket."""
        return len(self._tickets)

    @property
    def num_waiting(self) -> int:
        """Evaluations that wait for a turn."""
        return self._turns.num_waiting

    @property
    def num_waiting_for_room(self) -> int:
        """Models whose weights wait until they may be fetched."""
        return self._kept.num_waiting

    @property
    def draining(self) -> bool:
        """Whether new requests are refused for good."""
        return self._draining

    def check_room(self) -> None:
        """Raise QueueFull or Draining if a request that came now would be refused."""
        if self._draining:
            raise Draining("the service is stopping", retry_after_seconds=10.0)
        if len(self._tickets) >= self._queue_size:
            raise QueueFull(
                f"{len(self._tickets)} requests are being worked on or wait already",
                retry_after_seconds=self.retry_after_seconds(),
            )

    @asynccontextmanager
    async def admit(self, num_evaluations: int = 1) -> AsyncIterator[Ticket]:
        """Hold one place in the queue for the length of the block.

        Raises QueueFull or Draining at once, and DeadlineExceeded when the block takes longer than a
        request may, Draining when `end_admitted` ends it; the work inside is cancelled then.
        """
        self.check_room()
        ticket = Ticket(next(self._numbers), num_evaluations)
        deadline = self._tickets[ticket] = asyncio.timeout(self._timeout_seconds)
        try:
            async with deadline:
                yield ticket
        except TimeoutError as error:
            if not deadline.expired():
                raise
            if self._ended:
                raise Draining("the service stops before the work is done") from error
            detail = f"the request took longer than {self._timeout_seconds:g} s"
            raise DeadlineExceeded(detail) from error
        finally:
            del self._tickets[ticket]
            self._turns.forget(ticket)
            self._kept.forget(ticket)
            if not self._tickets:
                self._drained.set()

    @asynccontextmanager
    async def room_for_weights(self, ticket: Ticket, num_bytes: int) -> AsyncIterator[None]:
        """Wait for room among the weights fetched or kept at once, and hold it for the length of the block."""
        async with self._kept.hold(ticket, max(1, math.ceil(num_bytes / self._bytes_per_place))):
            yield

    @asynccontextmanager
    async def turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for one evaluation's turn, and hold it for the length of the block."""
        async with self._turns.hold(ticket):
            started = time.monotonic()
            try:
                yield
                self._learn(time.monotonic() - started)
            finally:
                ticket.num_finished += 1

    def retry_after_seconds(self) -> float:
        """When a place may be free: what the requests ahead still have to evaluate, at the pace of late."""
        fewest_left = min((t.num_evaluations - t.num_finished for t in self._tickets), default=1)
        return float(max(1, math.ceil(max(1, fewest_left) * self._turn_seconds / self._max_running)))

    async def drain(self, timeout_seconds: float) -> bool:
        """Refuse new requests from now on; wait for those admitted. False when some are left at the end."""
        self._draining = True
        return await self._empty_within(timeout_seconds)

    async def end_admitted(self, timeout_seconds: float) -> bool:
        """End the work of all who are admitted: each is told Draining. False when some go on at the end."""
        self._ended = True
        for deadline in self._tickets.values():
            if not deadline.expired():
                deadline.reschedule(0.0)  # long past
        return await self._empty_within(timeout_seconds)

    async def _empty_within(self, seconds: float) -> bool:
        if not self._tickets:
            return True
        self._drained.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._drained.wait()
        except TimeoutError:
            return False
        return True

    def _learn(self, seconds: float) -> None:
        self._turn_seconds += _WEIGHT_OF_LATEST * (seconds - self._turn_seconds)
