"""How long a worker takes until it can evaluate with weights: by what it took of late, and by where the files are."""

import math
import statistics
from collections import OrderedDict, deque
from collections.abc import Collection

from workers.types import WeightsId

_NUM_REMEMBERED = 5
"""Loads, and files that were sent: few, for how long a file takes changes with what else is on its way."""
_MAX_WEIGHTS = 10_000
"""Of which it is remembered which nodes have them."""
_NO_NODE = ""
"""The node of a worker on this machine, where every file is."""


class BeginTimes:
    """Of one pool, whose weights are all of one size."""

    def __init__(self) -> None:
        self.load_seconds = 0.0
        """For weights from a file onto the device. 0 until one was seen, as `send_seconds` is."""
        self.send_seconds = 0.0
        """For a node to be sent their file."""
        self._loads: deque[float] = deque(maxlen=_NUM_REMEMBERED)
        self._sends: deque[float] = deque(maxlen=_NUM_REMEMBERED)
        self._nodes_with: OrderedDict[WeightsId, set[str]] = OrderedDict()
        """The nodes that had the file when it was last used; some may have evicted it since."""

    def note_loaded(self, weights: WeightsId, node: str, load_seconds: float, task_seconds: float) -> None:
        """A worker has the weights of its task on its device, so long after it was given the task.

        `load_seconds` is by its own clock, and 0.0 when they were there.
        """
        if load_seconds:
            self._loads.append(load_seconds)
            self.load_seconds = statistics.median(self._loads)
            if not self.is_on(weights, {node}):
                self._sends.append(max(0.0, task_seconds - load_seconds))
                self.send_seconds = statistics.median(self._sends)
        if node != _NO_NODE:
            self._nodes_with.setdefault(weights, set()).add(node)
            self._nodes_with.move_to_end(weights)
            if len(self._nodes_with) > _MAX_WEIGHTS:
                self._nodes_with.popitem(last=False)

    def is_on(self, weights: WeightsId, nodes: Collection[str]) -> bool:
        """Whether one of these nodes has the file, as far as is known."""
        return _NO_NODE in nodes or not self._nodes_with.get(weights, set()).isdisjoint(nodes)

    def seconds(self, weights: WeightsId, held: Collection[WeightsId], nodes: Collection[str]) -> float:
        """Until the first of some workers can evaluate with these weights: `held` lie on their devices.

        Infinite without a worker, that is, without a node.
        """
        if weights in held:
            return 0.0
        if not nodes:
            return math.inf
        return self.load_seconds if self.is_on(weights, nodes) else self.load_seconds + self.send_seconds
