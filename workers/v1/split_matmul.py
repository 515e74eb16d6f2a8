"""float32 products on a GPU's bf16 tensor cores: operands in three parts, six products, summed in float32.

A float32 carries 24 significant bits and a bf16 carries 8, so a float32 is the sum of three bf16, exactly
(down to about 1e-33). Of the nine products of parts, six can reach the result's 24 bits:

    x w = x3 w1 + x2 w2 + x1 w3  +  x2 w1 + x1 w2  +  x1 w1        each group about 2^8 larger than the last

A tensor core multiplies bf16 exactly. If it added in float32, as the CPU here does, the result would be as near to
float64 as that of a float32 product (against it, relative to the largest element, K = 2048: six 2e-7, float32
4e-7, the three large ones alone 5e-6). It may cut off what it adds where float32 rounds: then long sums shrink, and
are less exact than float32's. With the parts of x side by side and those of W stacked in the opposite order, each
group is one product of slices: nothing is copied, and the smallest group comes first.

Not measured on a GPU so far, neither error nor speed: six times the operations, on units more than ten times as fast.
"""

import torch
from torch import Tensor

NUM_PARTS = 3


def split(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x1, x2, x3, each bf16, of which x is the sum: float32 [...] -> three times [...]."""
    first = x.bfloat16()
    rest = x - first.float()
    second = rest.bfloat16()
    return first, second, (rest - second.float()).bfloat16()


def stack_parts(weight: Tensor) -> Tensor:
    """W3, W2, W1 one below the other: float32 [in, out] -> bf16 [3 in, out]."""
    return torch.cat(split(weight)[::-1])


def is_stacked(weight: Tensor, num_in: int) -> bool:
    """Whether these are the stacked parts of a weight for rows of this width."""
    return weight.shape[0] == NUM_PARTS * num_in


def add_split_product(out: Tensor, x: Tensor, stacked: Tensor) -> Tensor:
    """out += x @ W, in place: x [N, in], stacked parts of W [3 in, out], out [N, out], both float32."""
    num_in = x.shape[-1]
    parts = torch.cat(split(x), dim=-1)  # [N, 3 in]: x1, x2, x3
    for group in range(NUM_PARTS):
        out += product(parts[:, : (NUM_PARTS - group) * num_in], stacked[group * num_in :])
    return out


def product(x: Tensor, weight: Tensor) -> Tensor:
    """bf16 [N, K], [K, out] -> [N, out], added up and returned in float32."""
    if x.is_cuda:
        return torch.mm(x, weight, out_dtype=torch.float32)
    return (
        x.float() @ weight.float()
    )  # a CPU's bf16 product would round its result; this one has the same numbers
