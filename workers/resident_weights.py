"""Models that stay on the device between jobs, within a budget; the least recently used goes first."""

import threading
from collections import OrderedDict
from collections.abc import Set
from typing import Protocol

from workers.types import WeightsId


class LoadedModel(Protocol):
    """Weights on a device, as an architecture's `load` returns them."""

    @property
    def resident_bytes(self) -> int: ...


class ResidentWeights:
    """Safe for two threads: one that evaluates and one that loads ahead.

    The budget bounds what lies here beside the model in use: that one always has its place.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._models: OrderedDict[WeightsId, LoadedModel] = OrderedDict()
        self._lock = threading.Lock()

    def ids(self) -> frozenset[WeightsId]:
        """Whose weights are here."""
        with self._lock:
            return frozenset(self._models)

    def use(self, weights: WeightsId) -> LoadedModel | None:
        """These weights, now the last to go; None when they are not here."""
        with self._lock:
            if weights in self._models:
                self._models.move_to_end(weights)
            return self._models.get(weights)

    def add(self, weights: WeightsId, model: LoadedModel) -> None:
        """Keep these from now on."""
        with self._lock:
            self._models[weights] = model

    def make_room(self, num_bytes: int, keep: Set[WeightsId] = frozenset()) -> bool:
        """Drop the least recently used until so much more fits; whether it does. `keep` stays in any case."""
        with self._lock:
            for weights in list(self._models):
                if self._free_bytes() >= num_bytes:
                    return True
                if weights not in keep:
                    del self._models[weights]
            return self._free_bytes() >= num_bytes

    def drop_all(self, keep: Set[WeightsId] = frozenset()) -> None:
        """Drop everything but `keep`."""
        with self._lock:
            for weights in set(self._models) - keep:
                del self._models[weights]

    def _free_bytes(self) -> int:
        return self._budget_bytes - sum(model.resident_bytes for model in self._models.values())
