"""Models that stay on the device between jobs, within a budget; the least recently used goes first."""

import threading
from collections import Counter, OrderedDict
from typing import Protocol

from workers.types import WeightsId


class LoadedModel(Protocol):
    """Weights on a device, as an architecture's `load` returns them."""

    @property
    def resident_bytes(self) -> int: ...


class ResidentWeights:
    """Safe for several threads: one evaluates, one loads ahead, one hears of what is evaluated next.

    Pinned weights are never evicted: the budget bounds what lies here beside them.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._models: OrderedDict[WeightsId, LoadedModel] = OrderedDict()
        self._pins: Counter[WeightsId] = Counter()
        self._lock = threading.Lock()

    def ids(self) -> frozenset[WeightsId]:
        """Whose weights are here."""
        with self._lock:
            return frozenset(self._models)

    @property
    def budget_bytes(self) -> int:
        """What they may take together."""
        return self._budget_bytes

    @property
    def num_bytes(self) -> int:
        """What they take together."""
        with self._lock:
            return sum(model.resident_bytes for model in self._models.values())

    def pin(self, weights: WeightsId) -> None:
        """From now on these are not evicted, be they here already or not, until they are unpinned as often."""
        with self._lock:
            self._pins[weights] += 1

    def unpin(self, weights: WeightsId) -> None:
        """Undo one `pin`."""
        with self._lock:
            self._pins[weights] -= 1
            if not self._pins[weights]:
                del self._pins[weights]

    def find(self, weights: WeightsId) -> LoadedModel | None:
        """These weights, which count as used now; None when they are not here."""
        with self._lock:
            if weights in self._models:
                self._models.move_to_end(weights)
            return self._models.get(weights)

    def add(self, weights: WeightsId, model: LoadedModel) -> None:
        """Keep these from now on."""
        with self._lock:
            self._models[weights] = model

    def make_room(self, num_bytes: int) -> bool:
        """Evict the least recently used until so much more fits; whether it does."""
        with self._lock:
            for weights in list(self._models):
                if self._free_bytes() >= num_bytes:
                    return True
                if weights not in self._pins:
                    del self._models[weights]
            return self._free_bytes() >= num_bytes

    def evict_all(self) -> None:
        """Evict everything that is not pinned."""
        with self._lock:
            for weights in set(self._models) - set(self._pins):
                del self._models[weights]

    def _free_bytes(self) -> int:
        return self._budget_bytes - sum(model.resident_bytes for model in self._models.values())
