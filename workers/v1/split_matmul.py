"""float32 products on a GPU's tensor cores: operands in parts of 16 bits, the products of parts summed in float32.

A float32 carries 24 significant bits, two float16 parts 11 and a sign each: x = x1 + x2 / 2048, to 2^-23 of its size.
float16 reaches from 2^-14 to 65,504 only: a weight is scaled by a power of two, and stays in float32 if some of its
rows or columns do not fit even so; a row of x that does not fit becomes NaN, and what is NaN is evaluated again, in
float32.

With the parts of x side by side and those of W stacked in the opposite order, the two products of a higher and a lower
part are one product: nothing is copied, and what is smaller comes first.

    (x1 w2 + x2 w1) / 2048  +  x1 w1

A tensor core multiplies these exactly, but cuts off where float32 rounds, each time it adds up; so the larger product
is done in pieces of K, which are added in float32 as the kernel writes its result. Emulated errors:
`python -m benchmarks.emulated_precision`; what a GPU makes of it: docs/gpu.md.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .model import Linear

PIECE_OF_K = 512
"""Products that a tensor core adds up before float32 takes over."""

LOW_SCALE = 2048.0
"""Of the lower part: 2^11, the step from one part to the next."""

LARGEST_WEIGHT = 2.0**15
"""Below which weights are brought, by a power of two: near the top of float16, where most small ones are left."""

LEAST_ROW = 2.0**-12
"""The largest element of a row of x that parts carry: their smallest step, 2^-36, is 2^-24 of it."""

WEIGHT_ERROR = 2.0**-22
"""What a row or column of a weight may be off by, of its length, to be held in parts."""


def split(x: Tensor) -> Tensor:
    """The parts of x side by side: float32 [N, K] -> float16 [N, 2 K].

    A row that is too small becomes NaN; one that is too large is infinite, and its lower part NaN.
    """
    K = x.shape[-1]
    parts = x.new_empty(x.shape[0], 2 * K, dtype=torch.float16)
    high, low = torch.split(parts, K, dim=-1)
    largest = torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True)  # (N, 1)
    is_too_small = (largest < LEAST_ROW) & (largest > 0)
    torch.mul(x, torch.ones_like(largest).masked_fill_(is_too_small, math.nan), out=high)
    torch.mul(x - high, LOW_SCALE, out=low)
    return parts


def hold_in_parts(layer: Linear) -> None:
    """W becomes W2, W1 one below the other, float16 [2 in, out], if that is as good as float32; else it stays."""
    weight = layer.weight.detach()
    if weight.is_meta:  # it takes the same bytes either way
        return
    largest = float(weight.abs().amax())
    if not 0 < largest < math.inf:
        return
    exponent = math.frexp(LARGEST_WEIGHT / largest)[1] - 1
    if abs(exponent) > 126:  # its power of two is no normal float32
        return
    stacked = _stacked(weight * 2.0**exponent)
    error = joined(stacked, 2.0**-exponent) - weight
    for dim in (0, 1):
        allowed = WEIGHT_ERROR * torch.linalg.vector_norm(weight, dim=dim)
        if not bool((torch.linalg.vector_norm(error, dim=dim) <= allowed).all()):
            return
    layer.weight = torch.nn.Parameter(stacked, requires_grad=False)
    layer.weight_scale = 2.0**-exponent


def _stacked(weight: Tensor) -> Tensor:
    """The parts of W one below the other, the lower first: float32 [in, out] -> float16 [2 in, out]."""
    parts = split(weight.reshape(1, -1)).view(2, *weight.shape)
    return parts.flip(0).flatten(0, 1)


def is_in_parts(layer: Linear) -> bool:
    """Whether its weight is held as stacked parts."""
    return layer.weight.shape[0] > layer.num_in


def joined(stacked: Tensor, scale: float) -> Tensor:
    """W from its stacked parts, times `scale`: float16 [2 in, out] -> float32 [in, out]."""
    low, high = stacked.chunk(2)
    return low.float().div_(LOW_SCALE).add_(high).mul_(scale)


def products(parts: Tensor, layer: Linear, piece: int = PIECE_OF_K) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Whose sum is x @ W, the smallest first: columns of x's parts, rows of W's, and what to multiply them by."""
    stacked, K = layer.weight, layer.num_in
    yield parts, stacked, layer.weight_scale / LOW_SCALE
    high = stacked[K:]
    for start in range(0, K, piece):
        yield parts[:, start : min(start + piece, K)], high[start : start + piece], layer.weight_scale


def add_split_product(out: Tensor, parts: Tensor, layer: Linear) -> Tensor:
    """out += x @ W, in place: parts of x as `split` gives them, a weight held in parts, out float32 [N, out]."""
    for columns, rows, scale in products(parts, layer):
        add_product(out, columns, rows, scale)
    return out


def add_product(out: Tensor, x: Tensor, weight: Tensor, scale: float) -> None:
    """out += scale x @ W, in place: float16 [N, K], [K, out]; out [N, out] in float32, as are the sums."""
    if x.device.type == "cpu":  # which has no such product; this one has the same numbers
        out.addmm_(x.float(), weight.float(), alpha=scale)
    else:
        torch.addmm(out, x, weight, out_dtype=torch.float32, alpha=scale, out=out)
