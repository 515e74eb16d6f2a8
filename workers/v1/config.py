"""The constants of architecture version 1, and the shapes they can be replaced with.

Every number is the network's own, from its Rust crate `models` (`src/v1/mod.rs` and beside it); the
published Python package `soma-models` 0.1.7 has the same ones in `v1/configs.py`.
"""

from dataclasses import dataclass

ARCHITECTURE_VERSION = 1
"""What the network's protocol calls `model_architecture_version`."""

NUMERICS_VERSION = "2"
"""Names what this package computes, to the bit: results are kept under it and given out again.

A change that alters a bit of any result, or which weights are refused and why, must give it a new value; see
`tests/workers/v1/test_numerics_version.py`.
"""

V1_PAD_TOKEN_ID = 256
"""Fills the last sequence up; its targets cost nothing."""
V1_EOS_TOKEN_ID = 257
"""Follows the last byte, when the last sequence is not full."""

V1_EMBEDDING_DIM = 2048
V1_PWFF_HIDDEN_DIM = 4 * V1_EMBEDDING_DIM
V1_NUM_LAYERS = 24
V1_NUM_HEADS = 8
V1_VOCAB_SIZE = 264
"""256 byte values and 8 special tokens, of which two are in use."""
V1_MAX_SEQ_LEN = 1024
"""Tokens, so bytes, of a sequence."""
V1_BATCH_SIZE = 16
"""Sequences of a batch."""

V1_MAX_WAVELENGTH = 10_000.0
V1_SCALE_FACTOR = 1.0
"""Both of rotary positions."""
V1_LAYER_NORM_EPS = 1e-5
"""Burn's default, which upstream leaves alone."""
V1_MASKED_SCORE = -1e4
"""What upstream fills the scores of future keys with: large, but not minus infinity."""

V1_SIG_REG_T_MAX = 3.0
V1_SIG_REG_POINTS = 17
V1_SIG_REG_SLICES = 256
V1_SIG_REG_COEFFICIENT = 0.02


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shape of a V1 model; the defaults are the network's.

    `dropout_rate` acts in training only. Raises ValueError for shapes that make no model.
    """

    embedding_dim: int = V1_EMBEDDING_DIM
    pwff_hidden_dim: int = V1_PWFF_HIDDEN_DIM
    num_layers: int = V1_NUM_LAYERS
    num_heads: int = V1_NUM_HEADS
    vocab_size: int = V1_VOCAB_SIZE
    max_wavelength: float = V1_MAX_WAVELENGTH
    scale_factor: float = V1_SCALE_FACTOR
    dropout_rate: float = 0.0

    def __post_init__(self) -> None:
        for name in ("embedding_dim", "pwff_hidden_dim", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.embedding_dim % self.num_heads:
            raise ValueError(
                f"embedding_dim {self.embedding_dim} is not a multiple of num_heads {self.num_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"rotary positions need an even head width, not {self.head_dim}")
        if self.vocab_size <= V1_EOS_TOKEN_ID:
            raise ValueError(f"vocab_size must be above {V1_EOS_TOKEN_ID}, not {self.vocab_size}")
        if self.scale_factor < 1.0:
            raise ValueError(f"scale_factor must be at least 1, not {self.scale_factor}")
        if not 0.0 <= self.dropout_rate < 1.0:
            raise ValueError(f"dropout_rate must lie in [0, 1), not {self.dropout_rate}")

    @property
    def head_dim(self) -> int:
        """K, the width of one attention head."""
        return self.embedding_dim // self.num_heads

    @classmethod
    def small(cls) -> "ModelConfig":
        """The network's own `--small-model`: 13,192 parameters, the same code paths."""
        return cls(embedding_dim=16, pwff_hidden_dim=32, num_layers=2, num_heads=4)


@dataclass(frozen=True, slots=True)
class SIGRegConfig:
    """The quadrature and the slices of SIGReg; the defaults are the network's."""

    t_max: float = V1_SIG_REG_T_MAX
    points: int = V1_SIG_REG_POINTS
    """t takes this many evenly spaced values, 0 and t_max among them."""
    slices: int = V1_SIG_REG_SLICES
    """Random directions the representation is projected on."""
    coefficient: float = V1_SIG_REG_COEFFICIENT
    """What SIGReg is multiplied by in the loss."""

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"points must be at least 2, not {self.points}")
        if self.slices < 1:
            raise ValueError(f"slices must be at least 1, not {self.slices}")
