"""The noise of SIGReg, from the network's own generator: the same bits in Rust and Python."""

import arrgen
import numpy as np
from numpy.typing import NDArray

from .config import V1_SIG_REG_SLICES


def batch_noise(
    seed: int, batch_index: int, embedding_dim: int, slices: int = V1_SIG_REG_SLICES
) -> NDArray[np.float32]:
    """Standard normal draws [D, S] of one batch; the seed is `seed + batch_index`, modulo 2**64."""
    batch_seed = (seed + batch_index) % 2**64
    return np.asarray(arrgen.normal_array(batch_seed, [embedding_dim, slices], 0.0, 1.0), dtype=np.float32)
