"""Which fraction of a batch is done, while it is computed."""

import threading
from collections.abc import Callable

from .config import ModelConfig

OnFraction = Callable[[float], None]
"""Called with a number from 0 to 1, from the thread that computes."""


def ignore_fraction(fraction: float) -> None:
    """For callers that do not want to know."""


class BatchProgress:
    """Adds up the layers and the SIGReg of every micro-batch. Of a GPU it says what was handed to it, not what is done.

    Where a batch is computed once more on the reference path, it begins again.
    """

    def __init__(
        self,
        config: ModelConfig,
        num_tokens: int,
        num_slices: int,
        num_micro_batches: int,
        on_fraction: OnFraction,
    ) -> None:
        """`num_tokens` is the length of a sequence."""
        layers = config.num_layers * _layer_cost(config, num_tokens)
        share = layers / (layers + _rest_cost(config, num_slices))
        self._layer = share / config.num_layers / num_micro_batches
        self._rest = (1.0 - share) / num_micro_batches
        self._on_fraction = on_fraction
        self._done = 0.0
        self._lock = threading.Lock()

    def layer_done(self) -> None:
        """One layer of one micro-batch."""
        self._advance(self._layer)

    def sig_reg_advanced(self, part: float) -> None:
        """A further part of the SIGReg of one micro-batch: all of them add up to 1."""
        self._advance(self._rest * part)

    def _advance(self, part: float) -> None:
        with self._lock:  # by any thread of a team
            self._done = min(1.0, self._done + part)
            self._on_fraction(self._done)


def _layer_cost(config: ModelConfig, num_tokens: int) -> float:
    """Operations for one token in one layer, about."""
    D, F = config.embedding_dim, config.pwff_hidden_dim
    return 8.0 * D * D + 4.0 * D * F + 2.0 * num_tokens * D


def _rest_cost(config: ModelConfig, num_slices: int) -> float:
    """Operations for one token behind the layers, about: its logits, its projections and their sines and cosines."""
    return 2.0 * config.embedding_dim * (config.vocab_size + num_slices) + 300.0 * num_slices
