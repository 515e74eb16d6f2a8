"""Sums in the order in which the network's runner adds, where the order can be seen in the result.

Any order gives the same sum to rounding, except where many equal numbers are added (rounding errors then all
point one way: 16,384 equal losses are off by 2e-5) or where the sum is taken away again (a large common offset
before a layer norm). Upstream's backend is ndarray: a contiguous run is added in eight lanes, which are then
folded (`numeric_util::unrolled_fold`); any other axis is added slice by slice (`sum_axis`).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_LANES = 8


def mean(values: NDArray[np.float32]) -> float:
    """The mean of a contiguous run: [N] -> float32."""
    num_in_lanes = len(values) // NUM_LANES * NUM_LANES
    with np.errstate(over="ignore", invalid="ignore"):
        lanes = np.add.reduce(values[:num_in_lanes].reshape(-1, NUM_LANES), axis=0)
        total = np.float32(0)
        for lane in range(NUM_LANES // 2):
            total += lanes[lane] + lanes[lane + NUM_LANES // 2]
        for value in values[num_in_lanes:]:
            total += value
        return float(total / np.float32(len(values)))


def mean_of_rows(x: Tensor) -> Tensor:
    """The mean of every row: float32 [N, D] -> [N, 1]."""
    N, D = x.shape
    num_in_lanes = D // NUM_LANES * NUM_LANES
    lanes = x.new_zeros(N, NUM_LANES)
    for start in range(0, num_in_lanes, NUM_LANES):
        lanes += x[:, start : start + NUM_LANES]
    total = x.new_zeros(N)
    for lane in range(NUM_LANES // 2):
        total += lanes[:, lane] + lanes[:, lane + NUM_LANES // 2]
    for column in range(num_in_lanes, D):
        total += x[:, column]
    return total.div_(D).unsqueeze(-1)


def mean_over_tokens(x: Tensor) -> Tensor:
    """The mean over T: float32 [B, T, D] -> [B, D]. On a GPU in its own order: slice by slice would be slow."""
    if x.device.type != "cpu":
        return x.mean(dim=1)
    with np.errstate(over="ignore", invalid="ignore"):
        return torch.from_numpy(np.add.reduce(x.numpy(), axis=1) / np.float32(x.shape[1]))


def mean_over_sequences(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """The mean over B: [B, D] -> [D]."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean: NDArray[np.float32] = np.add.reduce(x, axis=0) / np.float32(len(x))
    return mean
