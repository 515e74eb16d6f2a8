"""How far a result may lie from the Rust runner's, for each precision: what docs/gpu.md documents."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.recipe import GoldenCase
from workers.types import Precision
from workers.v1.running_mean import MeanScore

LEAKING_EMBEDDING: dict[Precision, float] = {"float32": 1e-4, "float32-split": 1e-4}
"""Of the cases that attend to the future: their scores near 1e4 have an ulp of 1e-3 in float32, and of 8 or more in
TF32 and bf16, in which other keys may win."""


@dataclass(frozen=True)
class Tolerance:
    """`loss` is relative; `embedding` counts in units of its largest component, or of 1 if that is smaller."""

    loss: float
    embedding: float


TOLERANCES: dict[Precision, Tolerance] = {
    "float32": Tolerance(1e-5, 2e-5),
    "float32-split": Tolerance(1e-5, 2e-5),
    "tf32": Tolerance(1e-2, 1e-2),
    "bf16": Tolerance(5e-2, 5e-2),
}


@dataclass(frozen=True)
class Deviation:
    """A result beside the Rust runner's, each part as a share of what it may differ by."""

    loss: float
    """Relative, as it is."""
    embedding: float
    """In units of its largest component, as it is."""
    is_allowed: bool
    has_flag: bool
    """`attends_to_future` is as it must be."""


def deviation(case: GoldenCase, found: MeanScore, precision: Precision) -> Deviation:
    """How far `found` lies from the case's numbers."""
    allowed = TOLERANCES[precision]
    leaking = LEAKING_EMBEDDING.get(precision, math.inf)
    embedding_allowed = leaking if case.attends_to_future else allowed.embedding
    loss = abs(found.loss - case.loss) / abs(case.loss)
    embedding = largest_difference(found.embedding, case.embedding)
    return Deviation(
        loss,
        embedding,
        is_allowed=loss <= allowed.loss and embedding <= embedding_allowed,  # false for NaN
        has_flag=found.attends_to_future is case.attends_to_future,
    )


def largest_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    """Of two embeddings [D], in units of the expected one's largest component, or of 1 if that is smaller."""
    return float(np.abs(found - expected).max()) / max(1.0, float(np.abs(expected).max()))
