"""float32 products on a GPU's tensor cores: operands in parts of 16 bits, the products of parts summed in float32.

A float32 carries 24 significant bits. There are two ways to carry them:

- Three bf16 parts of 8 bits: x = x1 + x2 + x3, exactly (down to about 1e-33), whatever the size of x. Of the nine
  products of parts, six can reach the result's 24 bits.
- Two float16 parts of 11 bits and a sign: x = x1 + x2 / 2048, to 2^-23 of its size. Three products do. float16 reaches
  from 2^-14 to 65,504 only: a weight is scaled by a power of two, and stays in float32 if some of its rows or columns
  do not fit even so; a row of x that does not fit becomes NaN, and what is NaN is evaluated again, in float32.

With the parts of x side by side and those of W stacked in the opposite order, products of one size are one product of
slices: nothing is copied, and the smallest comes first.

    bf16      x3 w1 + x2 w2 + x1 w3  +  x2 w1 + x1 w2  +  x1 w1        each group about 2^8 larger than the last
    float16   (x2 w1 + x1 w2) / 2048                   +  x1 w1

A tensor core multiplies these exactly, but may cut off where float32 rounds, each time it adds up; so the largest group
is done in pieces of K, which are added in float32 as the kernel writes its result. Emulated errors:
`python -m benchmarks.emulated_precision`. Not measured on a GPU so far, neither error nor speed.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .model import Linear

PIECE_OF_K = 512
"""Products that a tensor core adds up before float32 takes over."""

LOW_SCALE = 2048.0
"""Of the lower float16 part: 2^11, the step from one part to the next."""

LARGEST_WEIGHT = 2.0**15
"""Below which weights are brought, by a power of two: near the top of float16, where most small ones are left."""

LEAST_ROW = 2.0**-12
"""The largest element of a row of x that float16 parts carry: their smallest step, 2^-36, is 2^-24 of it."""

WEIGHT_ERROR = 2.0**-22
"""What a row or column of a weight may be off by, of its length, to be held in float16 parts."""


def split(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The parts of x side by side: float32 [N, K] -> bf16 [N, 3 K] or float16 [N, 2 K]."""
    return _bf16_parts(x) if dtype == torch.bfloat16 else _float16_parts(x)


def _bf16_parts(x: Tensor) -> Tensor:
    K = x.shape[-1]
    parts = x.new_empty(x.shape[0], 3 * K, dtype=torch.bfloat16)
    first, second, third = torch.split(parts, K, dim=-1)
    first.copy_(x)
    rest = x - first
    second.copy_(rest)
    torch.sub(rest, second, out=third)
    return parts


def _float16_parts(x: Tensor) -> Tensor:
    """A row that is too small becomes NaN; one that is too large is infinite, and its lower part NaN."""
    K = x.shape[-1]
    parts = x.new_empty(x.shape[0], 2 * K, dtype=torch.float16)
    high, low = torch.split(parts, K, dim=-1)
    largest = torch.linalg.vector_norm(x, math.inf, dim=-1, keepdim=True)  # (N, 1)
    is_too_small = (largest < LEAST_ROW) & (largest > 0)
    torch.mul(x, torch.ones_like(largest).masked_fill_(is_too_small, math.nan), out=high)
    torch.mul(x - high, LOW_SCALE, out=low)
    return parts


def hold_in_bf16_parts(layer: Linear) -> None:
    """W becomes W3, W2, W1 one below the other: float32 [in, out] -> bf16 [3 in, out]."""
    _hold(layer, _stacked(layer.weight.detach(), torch.bfloat16), 1.0)


def hold_in_float16_parts(layer: Linear) -> None:
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
    stacked = _stacked(weight * 2.0**exponent, torch.float16)
    error = joined(stacked, weight.shape[0], 2.0**-exponent) - weight
    for dim in (0, 1):
        allowed = WEIGHT_ERROR * torch.linalg.vector_norm(weight, dim=dim)
        if not bool((torch.linalg.vector_norm(error, dim=dim) <= allowed).all()):
            return
    _hold(layer, stacked, 2.0**-exponent)


def _stacked(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The parts of W one below the other, the smallest first: float32 [in, out] -> [parts in, out]."""
    parts = split(weight.reshape(1, -1), dtype).view(-1, *weight.shape)
    return parts.flip(0).flatten(0, 1)


def _hold(layer: Linear, stacked: Tensor, scale: float) -> None:
    layer.weight = torch.nn.Parameter(stacked, requires_grad=False)
    layer.weight_scale = scale


def is_in_parts(layer: Linear) -> bool:
    """Whether its weight is held as stacked parts."""
    return layer.weight.shape[0] > layer.num_in


def joined(stacked: Tensor, num_in: int, scale: float) -> Tensor:
    """W from its stacked parts, times `scale`: [parts in, out] -> float32 [in, out]."""
    *smaller, first = torch.split(stacked, num_in)
    step = LOW_SCALE if stacked.dtype == torch.float16 else 1.0
    weight = torch.zeros_like(first, dtype=torch.float32)
    for part in smaller:
        weight += part.float() / step
    return weight.add_(first).mul_(scale)


def products(parts: Tensor, layer: Linear, piece: int = PIECE_OF_K) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Whose sum is x @ W, the smallest first: columns of x's parts, rows of W's, and what to multiply them by."""
    stacked, K = layer.weight, layer.num_in
    num_parts = parts.shape[-1] // K
    step = LOW_SCALE if parts.dtype == torch.float16 else 1.0
    for larger in range(num_parts - 1):
        yield parts[:, : (num_parts - larger) * K], stacked[larger * K :], layer.weight_scale / step
    largest = stacked[-K:]
    for start in range(0, K, piece):
        yield parts[:, start : min(start + piece, K)], largest[start : start + piece], layer.weight_scale


def add_split_product(out: Tensor, parts: Tensor, layer: Linear) -> Tensor:
    """out += x @ W, in place: parts of x as `split` gives them, a weight in the same parts, out float32 [N, out]."""
    for columns, rows, scale in products(parts, layer):
        add_product(out, columns, rows, scale)
    return out


def add_product(out: Tensor, x: Tensor, weight: Tensor, scale: float) -> None:
    """out += scale x @ W, in place: bf16 or float16 [N, K], [K, out]; out [N, out] in float32, as are the sums."""
    if x.device.type == "cpu":  # which has no such product; this one has the same numbers
        out.addmm_(x.float(), weight.float(), alpha=scale)
    else:
        torch.addmm(out, x, weight, out_dtype=torch.float32, alpha=scale, out=out)
