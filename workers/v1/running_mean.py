"""From the scores of batches to the result of an evaluation. Needs no torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from .config import V1_SIG_REG_COEFFICIENT
from .errors import EmptyData, NonFiniteResult


class ScoredBatch(Protocol):
    """What the fold needs of a batch; `BatchScore` and any value of the same fields will do."""

    @property
    def index(self) -> int: ...
    @property
    def cross_entropy(self) -> float: ...
    @property
    def sig_reg(self) -> float: ...
    @property
    def embedding(self) -> NDArray[np.float32]: ...
    @property
    def attends_to_future(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class BatchScore:
    """The numbers of one batch: depend on weights, data, seed and batch index alone."""

    index: int
    cross_entropy: float
    """Nats, over all tokens of the batch, PAD counted."""
    sig_reg: float
    """As the formula gives it, before the coefficient 0.02."""
    embedding: NDArray[np.float32]
    """[D]: the mean representation."""
    attends_to_future: bool
    """A masked key got a softmax weight above zero, in some layer."""
    token_cross_entropy: NDArray[np.float32] | None = None
    """[B, T]: nats of every token, 0 for PAD targets; None unless asked for. The loss needs only the mean."""


@dataclass(frozen=True, slots=True)
class MeanScore:
    """The numbers of an evaluation."""

    loss: float
    cross_entropy: float
    sig_reg: float
    embedding: NDArray[np.float32]
    """[D]"""
    attends_to_future: bool


def running_mean(scores: Iterable[ScoredBatch]) -> MeanScore:
    """Fold the scores of all batches, given in any order, in the order of their index.

    In float32, `m += (x - m) / n`, as upstream's runner does it. Every batch weighs the same, however few
    sequences it has: this looks like a bug upstream, and is kept.

    Raises EmptyData without scores, NonFiniteResult when the loss or the embedding is NaN or infinite,
    ValueError when the indices are not 0, 1, 2 ...
    """
    ordered = sorted(scores, key=lambda score: score.index)
    if not ordered:
        raise EmptyData("the data is empty: there is nothing to evaluate on")
    if [score.index for score in ordered] != list(range(len(ordered))):
        raise ValueError("the scores are not those of the batches 0, 1, 2 ... each once")
    numbers = np.zeros(3, dtype=np.float32)  # loss, cross_entropy, sig_reg
    embedding = np.zeros_like(ordered[0].embedding, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for n, score in enumerate(ordered, start=1):
            count = np.float32(n)
            numbers += (_numbers(score) - numbers) / count
            embedding += (score.embedding - embedding) / count
    _refuse_non_finite(numbers[0], embedding)
    return MeanScore(
        loss=float(numbers[0]),
        cross_entropy=float(numbers[1]),
        sig_reg=float(numbers[2]),
        embedding=embedding,
        attends_to_future=any(score.attends_to_future for score in ordered),
    )


def _numbers(score: ScoredBatch) -> NDArray[np.float32]:
    cross_entropy, sig_reg = np.float32(score.cross_entropy), np.float32(score.sig_reg)
    loss = cross_entropy + np.float32(V1_SIG_REG_COEFFICIENT) * sig_reg
    return np.array([loss, cross_entropy, sig_reg], dtype=np.float32)


def _refuse_non_finite(loss: np.float32, embedding: NDArray[np.float32]) -> None:
    if not np.isfinite(loss):
        raise NonFiniteResult(f"the loss is {loss}")
    num_bad = int(np.count_nonzero(~np.isfinite(embedding)))
    if num_bad:
        raise NonFiniteResult(
            f"{num_bad} of {embedding.size} components of the embedding are NaN or infinite"
        )
