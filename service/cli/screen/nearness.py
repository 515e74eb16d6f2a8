"""How near the pieces came to each target: counts that take the same memory however many pieces there are."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from service.scoring.screen import Id

BIN_WIDTH = 0.02
"""Of a distance less its threshold, which lies between -2 and 2 where the threshold lies between 0 and 2."""
NUM_BINS = 200
_LOWEST = -BIN_WIDTH * NUM_BINS / 2


@dataclass(slots=True)
class OfTarget:
    """One target and the piece that came nearest to it."""

    threshold: float
    hits: int = 0
    nearest: Id | None = None
    distance: float = math.inf


@dataclass(slots=True)
class Nearness:
    """What the lines of a screen say of distances."""

    thresholds: Mapping[Id, float]
    counts: list[int] = field(default_factory=lambda: [0] * NUM_BINS)
    """Pairs of a piece and a target, by distance less threshold: bin i begins at `edge(i)`. Ends hold the rest."""
    targets: dict[Id, OfTarget] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.targets = {name: OfTarget(threshold) for name, threshold in self.thresholds.items()}

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one line."""
        for found in line["targets"]:
            target, distance = self.targets.get(found["id"]), found["distance"]
            if target is None or distance is None:
                continue
            place = math.floor((distance - target.threshold - _LOWEST) / BIN_WIDTH)
            if found["hit"]:  # on the threshold itself too
                place = min(place, NUM_BINS // 2 - 1)
            self.counts[min(max(place, 0), NUM_BINS - 1)] += 1
            target.hits += found["hit"]
            if distance < target.distance:
                target.nearest, target.distance = line["piece"], distance

    def histogram(self) -> tuple[list[float], list[int]]:
        """Edges, one more than counts, and counts: from the first bin that is not empty to the last, 0 among them."""
        filled = [place for place, count in enumerate(self.counts) if count]
        if not filled:
            return [], []
        first, last = min(filled[0], NUM_BINS // 2 - 1), max(filled[-1], NUM_BINS // 2)
        return [edge(place) for place in range(first, last + 2)], self.counts[first : last + 1]


def edge(place: int) -> float:
    """Where a bin begins; exactly 0 in the middle."""
    return (place - NUM_BINS // 2) * BIN_WIDTH
