"""Who may start, and when: admission, fair order, deadlines and draining. Policy only.

A request is admitted, or refused with queue-full, before a byte is fetched for it, and holds its ticket to its end.
Each of its models waits for a weights slot, which bounds disk space and connections, and, once its weights are here,
for a worker: the pool sees all that wait, and begins them in the order of their entries. Both are shared between
requests by time (see fair_order): a competition of fifty models, weights that are slow to evaluate, or a stream of
small requests cannot starve other requests.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass

from service import tracing
from service.errors import DeadlineExceeded, Draining, QueueFull
from service.scoring.fair_order import FairOrder, Use
from service.scoring.fair_semaphore import FairSemaphore, Grant

_MAX_EVALUATION_SHARE = 0.5
_MIN_EVALUATION_SHARE = 0.02
"""Bounds on the share of a request's time that is reserved for evaluating, whatever that is expected to take."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One admitted request."""

    num_evaluations: int
    deadline: asyncio.Timeout
    started: float
    """When it was admitted, on the event loop's clock."""
    timeout_seconds: float
    """How long it may take."""
    num_finished: int = 0
    """Models whose evaluation, or error, is there."""


class WeightsSlot:
    """What one model's weights hold: bytes of the disk, and, while they are downloaded, a connection."""

    def __init__(self, *grants: Grant[Ticket]) -> None:
        self._grants = grants

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits who could be granted what this one holds."""
        return any(grant.is_wanted for grant in self._grants)

    def release_connection(self) -> None:
        """The weights are downloaded: others may use the connection."""
        for connection in self._grants[1:]:
            connection.release()


class Scheduler:
    """Admits at most `queue_size` requests, whose evaluations share `num_workers()` workers, which may change.

    At most `max_downloads` weights are downloaded at once, and what is downloaded or kept for an evaluation takes at
    most `kept_bytes`.
    """

    def __init__(
        self,
        *,
        queue_size: int,
        num_workers: Callable[[], int],
        max_downloads: int,
        kept_bytes: int,
        timeout_seconds: float,
    ) -> None:
        self._queue_size = queue_size
        self._num_workers = num_workers
        self._evaluations = FairOrder[Ticket]()
        self._entries: set[Use[Ticket]] = set()
        """Of all evaluations that wait for a worker, or have one."""
        # A request whose publishers are slow leaves half of the connections to others.
        self._connections = FairSemaphore[Ticket](max_downloads, max_per_request=(max_downloads + 1) // 2)
        self._bytes = FairSemaphore[Ticket](kept_bytes, max_per_request=kept_bytes // 2)
        self._timeout_seconds = timeout_seconds
        self._tickets: set[Ticket] = set()
        self._drained = asyncio.Event()
        self._draining = False
        self._ended = False

    @property
    def queue_size(self) -> int:
        """Requests that may hold a ticket at once."""
        return self._queue_size

    @property
    def num_admitted(self) -> int:
        """Requests that hold a ticket."""
        return len(self._tickets)

    @property
    def num_running(self) -> int:
        """Evaluations of which a worker was given some."""
        return sum(entry.was_begun for entry in self._entries)

    @property
    def oldest_waiting_since(self) -> float | None:
        """Since when the oldest of all that wait here waits, in seconds since 1970; None when nothing waits."""
        since = [semaphore.oldest_waiting_since for semaphore in (self._connections, self._bytes)]
        since += [entry.asked_at for entry in self._entries if not entry.was_begun]
        return min((moment for moment in since if moment is not None), default=None)

    @property
    def num_free_places(self) -> int:
        """Requests that would be admitted now; 0 while draining."""
        return 0 if self._draining else max(0, self._queue_size - len(self._tickets))

    @property
    def timeout_seconds(self) -> float:
        """How long a request may take."""
        return self._timeout_seconds

    @property
    def num_waiting(self) -> int:
        """Evaluations that wait for a worker."""
        return len(self._entries) - self.num_running

    @property
    def num_waiting_for_room(self) -> int:
        """Models whose weights wait until they may be fetched."""
        return self._connections.num_waiting + self._bytes.num_waiting

    @property
    def draining(self) -> bool:
        """Whether new requests are refused for good."""
        return self._draining

    def check_room(self) -> None:
        """Raise QueueFull or Draining if a request would be refused now."""
        if self._draining:
            raise Draining("the service is stopping", retry_after_seconds=10.0)
        if len(self._tickets) >= self._queue_size:
            raise QueueFull(
                f"{len(self._tickets)} requests are running or waiting",
                retry_after_seconds=self.retry_after_seconds(),
            )

    @asynccontextmanager
    async def admit(
        self, num_evaluations: int = 1, *, timeout_seconds: float | None = None
    ) -> AsyncIterator[Ticket]:
        """Hold one ticket for the length of the block. `timeout_seconds` is less for a request that was begun before.

        Raises QueueFull or Draining at once, and DeadlineExceeded when the block takes longer than a
        request may, Draining when `end_admitted` ends it; the work inside is cancelled then.
        """
        with tracing.span("admission", {"soma_eval.models": num_evaluations}):
            self.check_room()
        seconds = self._timeout_seconds if timeout_seconds is None else timeout_seconds
        deadline = asyncio.timeout(seconds)
        now = asyncio.get_running_loop().time()
        ticket = Ticket(num_evaluations, deadline, now, seconds)
        self._tickets.add(ticket)
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
            self._tickets.remove(ticket)
            for order in (self._evaluations, self._connections, self._bytes):
                order.forget(ticket)
            if not self._tickets:
                self._drained.set()

    @asynccontextmanager
    async def weights_slot(
        self, ticket: Ticket, num_bytes: int, *, is_downloaded: bool
    ) -> AsyncIterator[WeightsSlot]:
        """Wait for room on the disk, and for a connection unless the weights are here; hold both for the block.

        The connection is acquired first: a model that waits for one must not hold disk space.
        """
        async with AsyncExitStack() as grants:
            connections = []
            with tracing.span("wait for weights slot"):
                if not is_downloaded:
                    connections.append(await grants.enter_async_context(self._connections.hold(ticket)))
                room = await grants.enter_async_context(self._bytes.hold(ticket, num_bytes))
            yield WeightsSlot(room, *connections)

    @contextmanager
    def queue_entry(self, ticket: Ticket) -> Iterator[Use[Ticket]]:
        """The place of one evaluation among those that wait, for the block in which a pool is asked for it."""
        entry = self._evaluations.ask(ticket)
        self._entries.add(entry)
        has_succeeded = False
        try:
            yield entry
            has_succeeded = True
        finally:
            self._entries.remove(entry)
            entry.end(has_succeeded=has_succeeded)
            if entry.was_begun:
                tracing.record("wait for worker", entry.asked, entry.asked + entry.waited_seconds, {})

    def seconds_for_downloads(self, ticket: Ticket) -> float:
        """Seconds that the request may still download: what it has left, less what its evaluations need.

        The evaluations left are expected to take as long as recent ones, with the devices shared between the requests
        that are active now. At most half of a request's time is reserved for them.
        """
        num_left = ticket.num_evaluations - ticket.num_finished
        num_sharing = max(1, self._evaluations.num_active_requests)
        expected = num_left * num_sharing * self._evaluations.expected_seconds / max(1, self._num_workers())
        reserved = min(expected, _MAX_EVALUATION_SHARE * ticket.timeout_seconds)
        reserved = max(reserved, _MIN_EVALUATION_SHARE * ticket.timeout_seconds)
        return ticket.started + ticket.timeout_seconds - reserved - asyncio.get_running_loop().time()

    def retry_after_seconds(self) -> float:
        """When a ticket may be free: after the shortest admitted request, with evaluations as long as recent ones."""
        fewest_left = min((t.num_evaluations - t.num_finished for t in self._tickets), default=1)
        seconds = max(1, fewest_left) * self._evaluations.expected_seconds / max(1, self._num_workers())
        return float(max(1, math.ceil(seconds)))

    async def drain(self, timeout_seconds: float) -> bool:
        """Refuse new requests from now on and wait for the admitted ones. False if some are left after the timeout."""
        self._draining = True
        return await self._empty_within(timeout_seconds)

    async def end_admitted(self, timeout_seconds: float) -> bool:
        """Cancel every admitted request with Draining. False if some are still running after the timeout."""
        self._ended = True
        for ticket in self._tickets:
            if not ticket.deadline.expired():
                ticket.deadline.reschedule(0.0)  # in the past: expires at once
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
