"""An event loop whose clock jumps to the next thing that is due, so that a day takes as long as its events.

What runs on it are the real scheduler and the real pool. They read `loop.time()` and `time.monotonic()`: within `run`
both are this loop's clock, which begins at 0. Nothing may wait for a thread, a process or a socket.
"""

import asyncio
import contextlib
import selectors
import time
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar
from unittest.mock import patch

T = TypeVar("T")


class Stalled(RuntimeError):
    """Everything waits, and nothing is due: whoever is waited for was forgotten."""


class _JumpingSelector(selectors.SelectSelector):
    """In place of waiting for a time, moves the clock on by it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Nothing ever arrives from outside. Raises Stalled where only that could go on."""
        if timeout is None:
            raise Stalled("every task waits, and nothing is due")
        self.now += max(0.0, timeout)
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Runs callbacks in the order of their time, without waiting."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Virtual seconds since the start."""
        return self._jumping.now


@contextlib.contextmanager
def _clocks_of(loop: VirtualTimeLoop) -> Iterator[None]:
    with patch.object(time, "monotonic", loop.time):
        yield


def run(work: Coroutine[Any, Any, T]) -> T:
    """The outcome of `work`, on a virtual clock. Raises what it raises, and Stalled."""
    loop = VirtualTimeLoop()
    with _clocks_of(loop), asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(work)
