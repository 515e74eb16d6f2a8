"""Attention with a causal mask, in three ways; B batch, H heads, T tokens, K head width.

- `fused_attention`: the fused kernel of a GPU.
- `causal_attention`: on a CPU, a block of queries at a time. Like upstream's runner it divides the weights by their
  sum before it adds up the values. A fused kernel divides last: so weights near 1 are added to one another, and where
  values are alike, as those of padding are, all queries make the same rounding errors, which no mean takes away.
- `filled_attention`: as upstream does it, future scores filled with -1e4, which some weights attend to.

Why the first two, which never look at the future, may stand for the third: see `forward`.
"""

import itertools
from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .config import V1_MASKED_SCORE

SCORES_PER_BLOCK = 1 << 17
"""That a thread of a CPU has at once: 512 KiB of float32, what its caches hold."""

CAUSAL_ROWS = 64
"""Queries of a block. Of the keys behind its first query half are computed for nothing: so it is short."""

FILLED_SCORES_PER_BLOCK = 1 << 22
"""That the reference path has at once: 16 MiB of float32."""


class Block(NamedTuple):
    """Some queries of some heads of one sequence."""

    q: Tensor
    """[H', T, K], like `k` and `v`: of these heads those of all tokens."""
    k: Tensor
    v: Tensor
    mixed: Tensor
    """[H', T, K], where the result goes."""
    start: int
    """The first query."""
    num_rows: int


def causal_blocks(q: Tensor, k: Tensor, v: Tensor, mixed: Tensor) -> list[Block]:
    """All of [B, H, T, K], in blocks for `causal_attention`. They follow from the shape alone."""
    T = q.shape[2]
    num_rows = min(CAUSAL_ROWS, T)
    return _blocks(q, k, v, mixed, max(1, SCORES_PER_BLOCK // (num_rows * T)), num_rows)


def filled_blocks(q: Tensor, k: Tensor, v: Tensor, mixed: Tensor) -> list[Block]:
    """All of [B, H, T, K], in blocks for `filled_attention`."""
    H, T = q.shape[1:3]
    return _blocks(q, k, v, mixed, H, max(1, FILLED_SCORES_PER_BLOCK // (H * T)))


def causal_attention(block: Block) -> None:
    """Mix the values of the keys that the block's queries may see."""
    q, k, v, mixed, start, num_rows = block
    keys, values = (part.narrow(1, 0, start + num_rows) for part in (k, v))  # (H', S, K)
    scores = (q.narrow(1, start, num_rows) @ keys.mT).mul_(q.shape[-1] ** -0.5)  # (H', R, S)
    scores.narrow(2, start, num_rows).masked_fill_(_future(num_rows), float("-inf"))
    mixed.narrow(1, start, num_rows).copy_(torch.softmax(scores, dim=-1) @ values)


def filled_attention(block: Block) -> Tensor:
    """Mix the values of all keys. Returns whether a key of the future has won any weight, a scalar on the device."""
    q, k, v, mixed, start, num_rows = block
    T, K = q.shape[1:]
    places = torch.arange(T, device=q.device)
    future = places > places[start : start + num_rows, None]  # (R, T)
    scores = (q.narrow(1, start, num_rows) @ k.mT) / K**0.5  # (H', R, T)
    scores.masked_fill_(future, V1_MASKED_SCORE)
    weights = torch.softmax(scores, dim=-1)
    mixed.narrow(1, start, num_rows).copy_(weights @ v)
    return ((weights > 0) & future).any()


def fused_attention(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """The fused kernel, run in `dtype`: float32 [B, H, T, K].

    On a GPU torch takes its memory-efficient kernel for float32 and K = 256, which multiplies as three products in TF32
    whatever the matmul precision is; docs/gpu.md says how near to float64 that is.
    In float16 a query or key above 65,504 makes the result not finite, so that the batch is evaluated again.
    """
    if dtype == torch.float16:
        largest = v.abs().amax(dim=(0, 2, 3), keepdim=True)  # (1, H, 1, 1)
        scale = torch.ldexp(torch.ones_like(largest), torch.frexp(largest).exponent)
        mixed = F.scaled_dot_product_attention(
            q.to(dtype), k.to(dtype), (v / scale).to(dtype), is_causal=True
        )
        return mixed.float() * scale
    q, k, v = (part.to(dtype) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).float()


@cache
def _future(num_rows: int) -> Tensor:
    """Of a block's queries and their own keys, those that are not to be seen: bool [R, R]."""
    with torch.inference_mode(False):
        return torch.ones(num_rows, num_rows, dtype=torch.bool).triu_(1)


def _blocks(q: Tensor, k: Tensor, v: Tensor, mixed: Tensor, num_heads: int, num_rows: int) -> list[Block]:
    B, H, T, _K = q.shape
    blocks = []
    for sequence, head in itertools.product(range(B), range(0, H, num_heads)):
        where = sequence, slice(head, head + num_heads)
        of_heads = q[where], k[where], v[where], mixed[where]
        blocks += [Block(*of_heads, start, min(num_rows, T - start)) for start in range(0, T, num_rows)]
    return blocks
