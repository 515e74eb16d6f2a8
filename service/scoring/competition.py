"""What is asked (a competition of models on one data set), and the pure arithmetic that decides it."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from service.blob import BlobRef
from service.checksum import decode_32_bytes, is_checksum
from service.errors import Fault, InvalidKey, InvalidRequest, ScoringError, ZeroEmbedding

NEAR_TIE_RELATIVE = 0.01
NEAR_TIE_ABSOLUTE = 0.01
"""What the network allows two validators to differ by: relative to the loss, or in units of loss."""


MAX_MANIFESTS = 1 << 12
"""An early bound on what is parsed; the scorer's limit on the models of a competition is lower."""


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
    models: tuple[ModelManifest | ScoringError, ...]
    """A malformed manifest stands here as its model's error; the other models are evaluated all the same."""
    seed: int
    """0 .. 2**64 - 1."""
    target_embedding: tuple[float, ...] | None = field(default=None, repr=False)
    compute_anew: bool = False
    """Whether to compute even what is kept from an earlier request."""


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
    return margin <= near_tie_margin(winner_loss)


def near_tie_margin(winner_loss: float) -> float:
    """The largest margin at which another validator could name another winner."""
    return max(NEAR_TIE_ABSOLUTE, NEAR_TIE_RELATIVE * abs(winner_loss))


def is_within_tolerance(ours: float, claimed: float) -> bool:
    """Whether a validator that has one number accepts the other, by the network's rule."""
    if ours == claimed:
        return True
    larger = max(abs(ours), abs(claimed))
    return abs(ours - claimed) < max(NEAR_TIE_ABSOLUTE, NEAR_TIE_RELATIVE * larger) and math.isfinite(larger)


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


def parse_decryption_key(text: str, *, fault: Fault = "client") -> bytes:
    """The 32 bytes of a key in Base58. Raises InvalidKey, which does not say what the key was."""
    key = decode_32_bytes(text)
    if key is None:
        raise InvalidKey("the decryption key is not 32 bytes in Base58", fault=fault, blob="model")
    return key


def competitors(manifests: Iterable[tuple[BlobRef, str | None]]) -> tuple[ModelManifest | ScoringError, ...]:
    """The models of a competition, from where their weights are and their keys in Base58.

    Raises the first model's InvalidRequest or InvalidKey when no manifest makes sense.
    """
    models = tuple(_competitor(weights, key) for weights, key in manifests)
    errors = [model for model in models if isinstance(model, ScoringError)]
    if errors and len(errors) == len(models):
        raise errors[0].with_model_index(0)
    return models


def _competitor(weights: BlobRef, key: str | None) -> ModelManifest | ScoringError:
    if weights.checksum is not None and not is_checksum(weights.checksum):
        detail = "the checksum of the weights is not a Blake2b-256 digest in Base58"
        return InvalidRequest(detail, fault="model_owner", blob="model")
    try:
        return ModelManifest(weights, None if key is None else parse_decryption_key(key, fault="model_owner"))
    except InvalidKey as error:
        return error
