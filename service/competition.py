"""What is asked (a competition of models on one data set), and the pure arithmetic that decides it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from service.checksum import decode_32_bytes
from service.errors import InvalidKey, ZeroEmbedding

NEAR_TIE_RELATIVE = 0.01
NEAR_TIE_ABSOLUTE = 0.01
"""What the network allows two validators to differ by (numerics: relative, or absolute in units of loss)."""


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A file that somebody has published: where, and what they promised."""

    url: str = field(repr=False)
    checksum: str | None = None
    """Blake2b-256 of the bytes as published, Base58."""
    size: int | None = None
    """Bytes as published."""


@dataclass(frozen=True, slots=True)
class ModelManifest:
    """One competitor: its published weights, and the key if they are encrypted."""

    weights: BlobRef
    decryption_key: bytes | None = field(default=None, repr=False)
    """32 bytes."""


@dataclass(frozen=True, slots=True)
class Competition:
    """Several models (or one) on one data set with one seed."""

    data: bytes | BlobRef = field(repr=False)
    models: tuple[ModelManifest, ...]
    seed: int
    """0 .. 2**64 - 1."""
    target_embedding: tuple[float, ...] | None = field(default=None, repr=False)


def pick_winner(losses: Sequence[float | None]) -> int | None:
    """Index of the lowest loss, the first on a tie; None where a model has no (finite) loss."""
    finite = [(loss, i) for i, loss in enumerate(losses) if loss is not None and math.isfinite(loss)]
    return min(finite)[1] if finite else None


def margin(losses: Sequence[float | None]) -> float | None:
    """How far the second best is from the winner; None with fewer than two valid models."""
    finite = sorted(loss for loss in losses if loss is not None and math.isfinite(loss))
    return finite[1] - finite[0] if len(finite) > 1 else None


def is_near_tie(winner_loss: float, margin: float | None) -> bool:
    """Whether another validator, within the network's tolerance, could name another winner."""
    if margin is None:
        return False
    return margin <= max(NEAR_TIE_ABSOLUTE, NEAR_TIE_RELATIVE * abs(winner_loss))


def cosine_distance(embedding: ArrayLike, target: ArrayLike) -> float:
    """`1 - dot(a/|a|, b/|b|)` of two vectors of one length, in float64.

    Raises ZeroEmbedding for a zero vector; upstream answers NaN there.
    """
    a, b = np.asarray(embedding, dtype=np.float64), np.asarray(target, dtype=np.float64)
    # Scaled by the largest element first, so that no square leaves the range of float64.
    largest_a, largest_b = np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0)
    if largest_a == 0.0:
        raise ZeroEmbedding("the model's embedding is the zero vector")
    if largest_b == 0.0:
        raise ZeroEmbedding("the target embedding is the zero vector", fault="client", blob=None)
    a, b = a / largest_a, b / largest_b
    return float(1.0 - np.dot(a / np.linalg.norm(a), b / np.linalg.norm(b)))


def parse_decryption_key(text: str, *, model_index: int | None = None) -> bytes:
    """The 32 bytes of a key in Base58. Raises InvalidKey, which does not say what the key was."""
    key = decode_32_bytes(text)
    if key is None:
        raise InvalidKey(
            "the decryption key is not 32 bytes in Base58", blob="model", model_index=model_index
        )
    return key
