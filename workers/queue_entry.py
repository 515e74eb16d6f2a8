"""The place of an evaluation among those that wait for a worker: whoever asks for evaluations may keep an order."""

import time
from typing import Protocol


class QueueEntry(Protocol):
    """The place of one evaluation, from when a pool is asked for it until a first worker is given some of it."""

    @property
    def rank(self) -> float:
        """The lowest is next; a difference is worth as many seconds of a worker. It may change at any time."""

    def begin(self) -> None:
        """A first worker is given some of the evaluation."""


class OrderOfArrival:
    """The entry of one for which nobody keeps another order."""

    def __init__(self) -> None:
        self.rank = time.monotonic()

    def begin(self) -> None:
        """Nothing depends on it."""
