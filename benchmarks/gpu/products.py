"""Rates of torch's products alone, in the shapes of the model's layers: the ceiling of everything else."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from benchmarks.gpu.clock import median_seconds

Kind = Literal["float32", "tf32 NN", "tf32 NT", "bf16"]
"""NN: weights lie (in, out), as in the files. NT: (out, in), as torch's own Linear has them."""

LEAST_SECONDS = 0.03
"""A round is repeated until it takes about so long."""


def rate(device: str, kind: Kind, config: Mapping[str, int], num_rows: int) -> float:
    """Operations a second over the six products of a layer, each as often as a layer has it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind.startswith("tf32") else "highest")
    try:
        D, F = config["embedding_dim"], config["pwff_hidden_dim"]
        operations, seconds = 0.0, 0.0
        for num_in, num_out, times in ((D, D, 4), (D, F, 1), (F, D, 1)):
            x, weight = (
                torch.randn(*shape, device=device) for shape in ((num_rows, num_in), (num_in, num_out))
            )
            operations += times * 2.0 * num_rows * num_in * num_out
            seconds += times * _seconds(device, _product(kind, x, weight))
        return operations / seconds
    finally:
        torch.set_float32_matmul_precision(before)


def _product(kind: Kind, x: Tensor, weight: Tensor) -> Callable[[], Tensor]:
    if kind == "bf16":
        x, weight = x.bfloat16(), weight.bfloat16()
    if kind == "tf32 NT":
        weight = weight.t().contiguous().t()
    out = x.new_empty(x.shape[0], weight.shape[1])
    return lambda: torch.mm(x, weight, out=out)


def _seconds(device: str, work: Callable[[], Tensor]) -> float:
    once = median_seconds(device, work, 1)
    return median_seconds(device, work, 3, max(1, int(LEAST_SECONDS / once)))
