"""Attention with a causal mask, in three ways; B batch, H heads, T tokens, K head width.

- `fused_attention`: the fused kernel of a GPU.
- `causal_attention`: on a CPU, a block of queries at a time. Like upstream's runner it divides the weights by their
  sum before it adds up the values. A fused kernel divides last: so weights near 1 are added to one another, and where
  values are alike, as those of padding are, all queries make the same rounding errors, which no mean takes away.
- `filled_attention`: as upstream does it, future scores filled with -1e4, which some weights attend to.

Why the first two, which never look at the future, may stand for the third: see `forward`.
"""

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
    """Some queries of some heads of one sequence, of q [B, H, T, K]."""

    sequence: int
    heads: slice
    rows: slice


def causal_blocks(q: Tensor) -> list[Block]:
    """All of q, in blocks for `causal_attention`. They follow from the shape alone."""
    B, H, T, _K = q.shape
    num_rows = min(CAUSAL_ROWS, T)
    num_heads = max(1, SCORES_PER_BLOCK // (num_rows * T))
    return _blocks(B, H, T, num_heads, num_rows)


def filled_blocks(q: Tensor) -> list[Block]:
    """All of q, in blocks for `filled_attention`."""
    B, H, T, _K = q.shape
    return _blocks(B, H, T, H, max(1, FILLED_SCORES_PER_BLOCK // (H * T)))


def causal_attention(q: Tensor, k: Tensor, v: Tensor, block: Block) -> Tensor:
    """Of the block's queries, over the keys that they may see: float32 [B, H, T, K] -> [H', R, K]."""
    sequence, heads, rows = block
    num_rows, width = rows.stop - rows.start, q.shape[-1]
    keys, values = (part[sequence, heads, : rows.stop] for part in (k, v))  # (H', S, K)
    scores = (q[sequence, heads, rows] @ keys.mT).mul_(width**-0.5)  # (H', R, S)
    future = torch.ones(num_rows, num_rows, dtype=torch.bool).triu_(1)
    scores[..., rows].masked_fill_(future, float("-inf"))
    return torch.softmax(scores, dim=-1) @ values


def filled_attention(q: Tensor, k: Tensor, v: Tensor, block: Block) -> tuple[Tensor, Tensor]:
    """Of the block's queries, over all keys: float32 [B, H, T, K] -> [H', R, K], and whether a key of the future
    has won any weight, a scalar on the device."""
    sequence, heads, rows = block
    T, K = q.shape[-2:]
    places = torch.arange(T, device=q.device)
    future = places > places[rows, None]  # (R, T)
    scores = (q[sequence, heads, rows] @ k[sequence, heads].mT) / K**0.5  # (H', R, T)
    scores.masked_fill_(future, V1_MASKED_SCORE)
    weights = torch.softmax(scores, dim=-1)
    return weights @ v[sequence, heads], ((weights > 0) & future).any()


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


def _blocks(num_sequences: int, num_heads: int, num_rows: int, heads: int, rows: int) -> list[Block]:
    return [
        Block(sequence, slice(head, min(head + heads, num_heads)), slice(row, min(row + rows, num_rows)))
        for sequence in range(num_sequences)
        for head in range(0, num_heads, heads)
        for row in range(0, num_rows, rows)
    ]
