"""What a screen asks (pieces of data, models, targets) and answers, and the pure arithmetic that decides it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from service.blob import BlobRef
from service.errors import InvalidRequest, ScoringError, ZeroEmbedding
from service.scoring.competition import ModelManifest, pick_winner, unit_vector
from workers.types import EvalResult

Id = int | str
"""What a piece, a model or a target is called in the answer: its position where it has no name."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One piece of data. What cannot be read stands here as its error; the other pieces are screened all the same."""

    id: Id
    data: bytes | BlobRef | ScoringError = field(repr=False)


@dataclass(frozen=True, slots=True)
class LocalWeights:
    """A weights file of this machine, which does not change while the screen lasts."""

    path: str
    identity: str
    """The same for the same content."""
    size: int
    decryption_key: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class ScreenModel:
    """One model; a malformed one stands here as its error."""

    id: Id
    weights: ModelManifest | LocalWeights | ScoringError


@dataclass(frozen=True, slots=True)
class ScreenTarget:
    """A target, and the models among which its winner is."""

    id: Id
    direction: NDArray[np.float64] = field(repr=False)
    """[embedding_dim]: its embedding with length 1."""
    distance_threshold: float
    models: tuple[int, ...]
    """Indices, in the target's own order: the first wins on a tie."""


@dataclass(frozen=True, slots=True)
class Screen:
    """Each piece is evaluated with each model and the seed, and measured against each target."""

    models: tuple[ScreenModel, ...]
    targets: tuple[ScreenTarget, ...]
    seed: int
    """0 .. 2**64 - 1."""
    compute_anew: bool = False
    """Whether to compute even what is kept from an earlier request."""


@dataclass(frozen=True, slots=True)
class ModelResult:
    """One model on one piece: a result, or why there is none."""

    result: EvalResult | None = None
    error: ScoringError | None = None
    was_kept: bool = False
    """Whether the result was kept from an earlier request: nothing was computed for it."""


@dataclass(frozen=True, slots=True)
class TargetResult:
    """One piece and one target."""

    winner: int | None
    """Index of the model; None where none of the target's models has a result."""
    distance: float | None
    """Of the winner's embedding to the target, 0 to 2; None without a winner, or for a zero embedding."""
    hit: bool
    """The distance is within the target's threshold."""


@dataclass(frozen=True, slots=True)
class PieceResult:
    """What there is to say of one piece. With an error of its own it has neither models nor targets."""

    piece: Id
    models: tuple[ModelResult, ...] = ()
    targets: tuple[TargetResult, ...] = ()
    error: ScoringError | None = None

    @property
    def num_hits(self) -> int:
        """Targets within whose threshold it is."""
        return sum(target.hit for target in self.targets)


@dataclass(slots=True)
class ScreenSummary:
    """The counts of a whole screen."""

    pieces: int = 0
    failed: int = 0
    """Pieces with an error of their own."""
    hits: int = 0
    """Pairs of a piece and a target."""
    pieces_with_hits: int = 0
    seconds: float = 0.0

    def count(self, result: PieceResult) -> None:
        """Add one piece."""
        self.pieces += 1
        self.failed += result.error is not None
        self.hits += result.num_hits
        self.pieces_with_hits += result.num_hits > 0


def screen_target(
    target: Id, embedding: ArrayLike, threshold: float, models: tuple[int, ...], embedding_dim: int
) -> ScreenTarget:
    """A target from its embedding. Raises InvalidRequest."""
    vector = np.asarray(embedding, dtype=np.float64)
    if vector.shape != (embedding_dim,) or not np.isfinite(vector).all():
        raise InvalidRequest(f"the embedding of target {target} is not {embedding_dim} finite numbers")
    try:
        direction = unit_vector(vector)
    except ZeroEmbedding:
        raise InvalidRequest(f"the embedding of target {target} is the zero vector") from None
    if not np.isfinite(threshold):
        raise InvalidRequest(f"the distance_threshold of target {target} is not finite")
    if not models:
        raise InvalidRequest(f"target {target} has no models")
    return ScreenTarget(target, direction, threshold, models)


def measure(targets: Sequence[ScreenTarget], models: Sequence[ModelResult]) -> tuple[TargetResult, ...]:
    """For each target the winner among its own models, as in a competition, and its distance."""
    losses = [None if model.result is None else model.result.loss for model in models]
    directions = [None if model.result is None else _direction(model.result) for model in models]
    return tuple(_measure(target, losses, directions) for target in targets)


def _measure(
    target: ScreenTarget, losses: list[float | None], directions: list[NDArray[np.float64] | None]
) -> TargetResult:
    place = pick_winner([losses[index] for index in target.models])
    if place is None:
        return TargetResult(None, None, False)
    winner = target.models[place]
    direction = directions[winner]
    if direction is None:
        return TargetResult(winner, None, False)
    distance = float(1.0 - np.dot(direction, target.direction))
    return TargetResult(winner, distance, distance <= target.distance_threshold)


def _direction(result: EvalResult) -> NDArray[np.float64] | None:
    try:
        return unit_vector(result.embedding)
    except ZeroEmbedding:
        return None
