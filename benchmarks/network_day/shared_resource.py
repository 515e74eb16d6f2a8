"""Something that several use at a time, each of them slower for it: a network link, or the cores of a machine."""

import asyncio
import heapq
import itertools


class SharedResource:
    """Gives `per_second` units each second, shared evenly between those who use it, and `most_each` to one at most.

    Of a link the unit is a byte, of a machine's cores a second of one core. `most_users`: so many can be served at
    once; where there are more, they share what those would get.
    """

    def __init__(
        self, per_second: float, most_each: float = float("inf"), most_users: float = float("inf")
    ) -> None:
        self._per_second = per_second
        self._most_each = most_each
        self._most_users = most_users
        self.total = 0.0
        """Units that were asked for."""
        self.busy_seconds = 0.0
        """As if it had been used by as many as it can serve at its full rate."""
        self._served = 0.0
        """Units that somebody who uses it from the start has been given."""
        self._at = 0.0
        self._users: list[tuple[float, int, asyncio.Future[None]]] = []
        """When each is done, in units of `_served`: a heap."""
        self._order = itertools.count()
        self._timer: asyncio.TimerHandle | None = None

    async def use(self, units: float) -> None:
        """Return once so many units were given; a caller that is cancelled uses it no more."""
        if units <= 0.0:
            return
        self._catch_up()
        self.total += units
        done = asyncio.get_running_loop().create_future()
        user = (self._served + units, next(self._order), done)
        heapq.heappush(self._users, user)
        self._plan()
        try:
            await done
        except asyncio.CancelledError:
            self._catch_up()
            if user in self._users:
                self.total -= user[0] - self._served
                self._users.remove(user)
                heapq.heapify(self._users)
                self._plan()
            raise

    @property
    def _rate_of_each(self) -> float:
        """Units per second that each user is given now."""
        num_users = len(self._users)
        return min(self._per_second / num_users, self._most_each * min(1.0, self._most_users / num_users))

    def _catch_up(self) -> None:
        """Account for the time since the last change."""
        now = asyncio.get_running_loop().time()
        if self._users:
            rate, passed = self._rate_of_each, now - self._at
            self._served += rate * passed
            self.busy_seconds += rate * len(self._users) / self._per_second * passed
        self._at = now

    def _plan(self) -> None:
        """Wake up when the next one is done."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        if self._users:
            seconds = max(0.0, self._users[0][0] - self._served) / self._rate_of_each
            self._timer = asyncio.get_running_loop().call_later(seconds, self._finish)

    def _finish(self) -> None:
        self._timer = None
        first = self._users[0][0]
        self._catch_up()
        self._served = max(self._served, first)  # rounding must not leave a rest that takes no time
        while self._users and self._users[0][0] <= self._served:
            done = heapq.heappop(self._users)[2]
            if not done.done():
                done.set_result(None)
        self._plan()
