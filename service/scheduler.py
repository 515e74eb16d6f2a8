"""Who may start, and when: admission, fair order, deadlines and draining. Policy only.

A request is admitted (or told queue-full) before a byte is fetched for it and holds its ticket to its end.
Each of its evaluations then waits for a turn. Turns go round: the request with the fewest so far is next,
the older one on a tie, so that a competition of fifty models does not keep a single evaluation waiting.
"""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from service.errors import DeadlineExceeded, Draining, QueueFull

_TURN_SECONDS_AT_FIRST = 5.0
_WEIGHT_OF_LATEST = 0.2


@dataclass(eq=False, slots=True)
class Ticket:
    """One admitted request."""

    number: int
    num_evaluations: int
    num_turns: int = 0
    finished: int = 0


@dataclass(eq=False, slots=True)
class _Waiter:
    ticket: Ticket
    turn: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Scheduler:
    """Admits at most `queue_size` requests and lets at most `num_turns` evaluations run at once."""

    def __init__(self, *, queue_size: int, num_turns: int, timeout_seconds: float) -> None:
        self._queue_size = queue_size
        self._free_turns = self._num_turns = num_turns
        self._timeout_seconds = timeout_seconds
        self._tickets: set[Ticket] = set()
        self._waiters: list[_Waiter] = []
        self._numbers = itertools.count()
        self._turn_seconds = _TURN_SECONDS_AT_FIRST
        self._drained = asyncio.Event()
        self._draining = False

    @property
    def num_admitted(self) -> int:
        """Requests that hold a ticket."""
        return len(self._tickets)

    @property
    def num_waiting(self) -> int:
        """Evaluations that wait for a turn."""
        return len(self._waiters)

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
        request may; the work inside is cancelled then.
        """
        self.check_room()
        ticket = Ticket(next(self._numbers), num_evaluations)
        self._tickets.add(ticket)
        try:
            async with asyncio.timeout(self._timeout_seconds) as deadline:
                yield ticket
        except TimeoutError as error:
            if not deadline.expired():
                raise
            detail = f"the request took longer than {self._timeout_seconds:g} s"
            raise DeadlineExceeded(detail) from error
        finally:
            self._tickets.discard(ticket)
            if not self._tickets:
                self._drained.set()

    @asynccontextmanager
    async def turn(self, ticket: Ticket) -> AsyncIterator[None]:
        """Wait for one evaluation's turn, and hold it for the length of the block."""
        waiter = _Waiter(ticket)
        self._waiters.append(waiter)
        self._hand_out_turns()
        try:
            await waiter.turn
        except asyncio.CancelledError:
            self._leave(waiter)
            raise
        started = time.monotonic()
        try:
            yield
            self._learn(time.monotonic() - started)
        finally:
            ticket.finished += 1
            self._free_turns += 1
            self._hand_out_turns()

    def retry_after_seconds(self) -> float:
        """When a place may be free: what the requests ahead still have to evaluate, at the pace of late."""
        fewest_left = min((t.num_evaluations - t.finished for t in self._tickets), default=1)
        return float(max(1, math.ceil(max(1, fewest_left) * self._turn_seconds / self._num_turns)))

    async def drain(self, timeout_seconds: float) -> bool:
        """Refuse new requests from now on; wait for those admitted. False when some are left at the end."""
        self._draining = True
        if not self._tickets:
            return True
        self._drained.clear()
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._drained.wait()
        except TimeoutError:
            return False
        return True

    def _hand_out_turns(self) -> None:
        while self._free_turns and self._waiters:
            next_up = min(self._waiters, key=_fairness)
            self._waiters.remove(next_up)
            if next_up.turn.cancelled():
                continue
            self._free_turns -= 1
            next_up.ticket.num_turns += 1
            next_up.turn.set_result(None)

    def _leave(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)
        elif waiter.turn.done() and not waiter.turn.cancelled():  # the turn came as the waiter left
            self._free_turns += 1
            self._hand_out_turns()

    def _learn(self, seconds: float) -> None:
        self._turn_seconds += _WEIGHT_OF_LATEST * (seconds - self._turn_seconds)


def _fairness(waiter: _Waiter) -> tuple[int, int]:
    return waiter.ticket.num_turns, waiter.ticket.number
