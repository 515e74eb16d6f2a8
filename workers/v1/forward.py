"""The forward pass of an evaluation: the fast path, its guard, and the reference path.

B batch, T tokens, D embedding, H heads, K head width, F hidden, V vocabulary. N = B T rows.

Upstream fills the scores of future keys with -1e4, not minus infinity. A causal kernel that never looks at
the future gives the same result exactly when every masked weight, exp(-1e4 - max), is 0 in float32; that is
so when the row's largest score lies more than 104 above -1e4, for exp(-104) rounds to 0. The fast path uses
such a kernel and keeps, on the device, the numbers that prove it right: `score_bound`, the largest
|q| |k| / sqrt(K) of any head and layer, below which no score's magnitude can go beyond, and `offset`, the
largest |mean| / deviation of any row that was normalised, on which depends how far two orders of summation
can lead apart. The caller looks at them once per batch. A batch with `score_bound` above `MAX_SAFE_SCORE`,
`offset` above `MAX_SAFE_OFFSET`, or NaN, is done again on the reference path, which follows upstream operation
by operation, the order of the sums in a layer norm included.

What that does not cover: weights that float32 itself cannot carry (embeddings with a common offset of 1e4 and
more), where the order of the sums within a product decides too.

On a CPU rows are done a tile at a time, and attention in blocks of queries (see `attention`), by whichever thread of
the team has time. Tiles and blocks follow from the shapes alone, so no bit depends on how many threads there are.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import (
    causal_attention,
    causal_blocks,
    filled_attention,
    filled_blocks,
    fused_attention,
)
from .batch_progress import BatchProgress
from .config import V1_LAYER_NORM_EPS
from .model import Attention, FeedForward, Layer, LayerNorm, Linear, Model, rotary_angles
from .runner_order import mean_of_rows
from .split_matmul import add_split_product, is_in_parts, joined, split
from .team import Team

MAX_SAFE_SCORE = 9_800.0
"""-1e4 + 104 = -9,896 is where masked keys begin to win weight; the rest is a margin for rounding, of the bound
and of scores, whose error near 1e4 stays below 1."""

MAX_SAFE_OFFSET = 100.0
"""A mean is off by about 6e-8 of its size: at this offset by 6e-6 of a deviation."""

CPU_HIDDEN_ROWS = 1024
CUDA_HIDDEN_ROWS = 4096
"""Rows of the feed-forward layer done at once, so that its hidden [rows, F] stays small. A GPU wants fewer, larger
operations; how large is unmeasured."""

CPU_TILE_ELEMENTS = 1 << 19
MIN_CPU_TILE_ROWS = 256
"""What a thread takes at once of [N, D]: enough rows to make its products fast, and several tiles of a long sequence
of a wide model."""


class Guard(NamedTuple):
    """What one pass says of itself. On the device."""

    longest: Tensor
    """Of each layer and head the lengths of the longest query and of the longest key: [L, 2, H]."""
    offset: Tensor
    """Fast path: no row had a larger |mean| / deviation before a norm. A scalar."""
    attends_to_future: Tensor
    """Reference path: 1 if a masked key got a softmax weight above 0. A scalar."""


class ForwardPass:
    """One pass over some sequences, whose parts a team shares. After `representations`, `guard` holds."""

    def __init__(
        self,
        model: Model,
        team: Team,
        *,
        reference: bool,
        progress: BatchProgress,
        attention_dtype: torch.dtype = torch.float32,
    ) -> None:
        """`attention_dtype` is that of `fused_attention`."""
        self.model = model
        self.attention_dtype = attention_dtype
        self.progress = progress
        self.team = team
        self.reference = reference
        self._longest: list[Tensor] = []
        self._offsets: list[Tensor] = []
        self._leaks: list[Tensor] = []

    def guard(self) -> Guard:
        """The numbers of the guard, so far."""
        longest = torch.stack(self._longest)
        offset, leaks = (
            torch.stack(found).amax().float() if found else longest.new_zeros(())
            for found in (self._offsets, self._leaks)
        )
        return Guard(longest, offset, leaks)

    def representations(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """r, the final norm's output: token ids and positions, both int64 [B, T] -> float32 [B, T, D]."""
        model = self.model
        cos, sin = rotary_angles(positions.flatten(), model.config)  # (N, K/2)
        self.cos, self.sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # (N, 1, K/2)
        x = F.embedding(token_ids.flatten(), model.embedding.weight)  # (N, D)
        # Every layer writes into the same memory: new pages cost more than what they are filled with.
        self.normed, self.queries, self.keys, self.values = (torch.empty_like(x) for _ in range(4))
        for layer in cast(list[Layer], model.encoder.layers):
            self._run_layer(x, layer, token_ids.shape)
            self.progress.layer_done()
        self.team.share(lambda rows: self._norm(x, rows, model.final_norm), row_tiles(x))
        return self.normed.view(*token_ids.shape, -1)

    def _run_layer(self, x: Tensor, layer: Layer, shape: torch.Size) -> None:
        """x += attention(LN(x)); x += pwff(LN(x)). Attention alone needs other rows, and so splits it in three."""
        longest = self.team.share(lambda rows: self._project(x, rows, layer), row_tiles(x))
        self._longest.append(torch.stack(longest).amax(dim=0))
        self._mix(layer.attention, shape)
        self.team.share(lambda rows: self._add(x, rows, layer), row_tiles(x))

    def _norm(self, x: Tensor, rows: slice, norm: LayerNorm) -> Tensor:
        """[N, D] -> [R, D], a part of `normed`. Two passes on both paths: torch's one kernel takes away what rounding
        leaves of a large common offset, which upstream does not, and at an offset of 1e3 the embedding would differ
        by 7e-5."""
        if self.reference:
            return reference_layer_norm(x[rows], norm, out=self.normed[rows])
        normed, offset = layer_norm(x[rows], norm, out=self.normed[rows])
        self._offsets.append(offset)
        return normed

    def _project(self, x: Tensor, rows: slice, layer: Layer) -> Tensor:
        """Rows of LN(x) become rows of `queries`, `keys` and `values`, rotated. The lengths of the longest: [2, H]."""
        attention, normed = layer.attention, self._norm(x, rows, layer.norm_1)
        shape = (normed.shape[0], attention.num_heads, attention.head_dim)
        of_q, of_k, of_v = self._operands(normed, attention.query, attention.key, attention.value)
        q = linear(of_q, attention.query, out=self.queries[rows]).view(shape)  # (R, H, K)
        k = linear(of_k, attention.key, out=self.keys[rows]).view(shape)
        linear(of_v, attention.value, out=self.values[rows])
        # Rotation keeps lengths, so they may be taken before it.
        longest = torch.stack([longest_of_heads(q), longest_of_heads(k)])
        rotate_in_place(q, self.cos[rows], self.sin[rows], scratch=normed)
        rotate_in_place(k, self.cos[rows], self.sin[rows], scratch=normed)
        return longest

    def _mix(self, attention: Attention, shape: torch.Size) -> None:
        """`normed` becomes the values of each head, mixed by its attention."""
        heads = (*shape, attention.num_heads, attention.head_dim)
        q, k, v, mixed = (
            part.view(heads).transpose(1, 2)  # (B, H, T, K)
            for part in (self.queries, self.keys, self.values, self.normed)
        )
        if self.reference:
            self._leaks += self.team.share(filled_attention, filled_blocks(q, k, v, mixed))
        elif q.device.type == "cpu" and self.attention_dtype == torch.float32:
            self.team.share(causal_attention, causal_blocks(q, k, v, mixed))
        else:
            mixed.copy_(fused_attention(q, k, v, self.attention_dtype))

    def _add(self, x: Tensor, rows: slice, layer: Layer) -> None:
        """x += the mixed values' output; x += pwff(LN(x))."""
        output = layer.attention.output
        add_linear(x[rows], self.operand(self.normed[rows], output), output, scratch=self.queries[rows])
        self._add_feed_forward(x[rows], self._norm(x, rows, layer.norm_2), layer.pwff)

    def _add_feed_forward(self, x: Tensor, normed: Tensor, pwff: FeedForward) -> None:
        """x += gelu(normed Wi + bi) Wo + bo, in place, a tile of rows at a time: [N, D]. normed is used up."""
        inner, outer = pwff.linear_inner, pwff.linear_outer
        num_rows = CPU_HIDDEN_ROWS if x.device.type == "cpu" else CUDA_HIDDEN_ROWS
        hidden = x.new_empty(min(x.shape[0], num_rows), inner.bias.shape[0])  # (R, F)
        for start in range(0, x.shape[0], num_rows):
            rows = slice(start, start + num_rows)
            tile = hidden[: x[rows].shape[0]]
            linear(self.operand(normed[rows], inner), inner, out=tile)  # (R, F)
            torch.ops.aten.gelu_(tile)
            add_linear(x[rows], self.operand(tile, outer), outer, scratch=normed[rows])

    def operand(self, x: Tensor, layer: Linear) -> Tensor:
        """Rows as `linear` takes them for this layer: float32 [N, in] -> in its weight's dtype, in parts if it is.

        On the reference path they stay in float32, and so are its products, in every precision.
        """
        dtype = layer.weight.dtype
        if self.reference or dtype == x.dtype:
            return x
        return split(x) if is_in_parts(layer) else x.to(dtype)

    def _operands(self, x: Tensor, *layers: Linear) -> list[Tensor]:
        """The same rows for several layers, made once for all that take them alike."""
        made = {
            dtype: self.operand(x, layer)
            for dtype, layer in {layer.weight.dtype: layer for layer in layers}.items()
        }
        return [made[layer.weight.dtype] for layer in layers]


def row_tiles(x: Tensor) -> list[slice]:
    """Rows of [N, D] that one thread does at once; all of them on a GPU."""
    N, D = x.shape
    return tiles(N, max(MIN_CPU_TILE_ROWS, CPU_TILE_ELEMENTS // D) if x.device.type == "cpu" else N)


def tiles(count: int, size: int) -> list[slice]:
    """0 .. count in parts of that size; the last may be smaller."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def longest_of_heads(q: Tensor) -> Tensor:
    """The length of the longest vector of each head: [R, H, K] -> [H], NaN where anything is."""
    longest: Tensor = torch.linalg.vector_norm(q, dim=-1).amax(dim=0)
    return longest


def largest_score(longest: Tensor, head_dim: int) -> Tensor:
    """A bound on every |q . k| / sqrt(K), by the longest q and k of each head: [..., 2, H] -> scalar."""
    longest_q, longest_k = longest.unbind(-2)
    bound: Tensor = (longest_q * longest_k).amax() / head_dim**0.5
    return bound


def joined_guard(guards: Sequence[Guard], num_together: int, head_dim: int) -> Tensor:
    """The bound on scores, the largest offset, and 1 if any pass attends to the future: float32 [3] on the device.

    The longest queries and keys are those of `num_together` passes: the bound is that of one pass over all of these.
    """
    longest, offsets, leaks = map(torch.stack, zip(*guards, strict=True))  # (P, L, 2, H), (P), (P)
    bounds = [largest_score(some.amax(dim=0), head_dim) for some in torch.split(longest, num_together)]
    return torch.stack([torch.stack(bounds).amax(), offsets.amax(), leaks.amax()])


def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor, *, scratch: Tensor) -> None:
    """Rotary positions, half-split: x [R, H, K], cos and sin [R, 1, K / 2], scratch as large as x."""
    a, b = x.chunk(2, dim=-1)  # (R, H, K/2), views
    a_sin, b_sin = scratch.view(2, *a.shape)
    torch.mul(a, sin, out=a_sin)
    torch.mul(b, sin, out=b_sin)
    a.mul_(cos).sub_(b_sin)
    b.mul_(cos).add_(a_sin)


def reference_layer_norm(x: Tensor, norm: LayerNorm, *, out: Tensor) -> Tensor:
    """d / sqrt(mean(d^2) + eps) * gamma + beta with d = x - mean(x), operation by operation: [N, D]."""
    d = torch.sub(x, mean_of_rows(x), out=out)
    variance = mean_of_rows(d.square())  # (N, 1)
    return d.div_(variance.add_(V1_LAYER_NORM_EPS).sqrt_()).mul_(norm.gamma).add_(norm.beta)


def layer_norm(x: Tensor, norm: LayerNorm, *, out: Tensor) -> tuple[Tensor, Tensor]:
    """The same with fewer trips through memory: [N, D], and the largest |mean| / deviation of a row, a scalar."""
    mean = x.mean(-1, keepdim=True)  # (N, 1)
    d = torch.sub(x, mean, out=out)
    variance = torch.linalg.vector_norm(d, dim=-1, keepdim=True).square_().div_(x.shape[-1])  # (N, 1)
    deviation = variance.add_(V1_LAYER_NORM_EPS).sqrt_()
    normed = torch.addcmul(norm.beta, d.div_(deviation), norm.gamma, out=out)
    return normed, mean.abs_().div_(deviation).amax()


def linear(x: Tensor, layer: Linear, *, out: Tensor | None = None) -> Tensor:
    """x @ W + b, the product in the precision of x: rows as `ForwardPass.operand` makes them -> float32 [N, out]."""
    if x.dtype == torch.float32:
        if layer.weight.dtype == torch.float32:
            return torch.addmm(layer.bias, x, layer.weight, out=out)
        return torch.addmm(layer.bias.float(), x, float32_weight(layer), out=out)
    if is_in_parts(layer):
        if out is None:
            out = torch.empty(x.shape[0], layer.bias.shape[0], device=x.device)
        return add_split_product(out.copy_(layer.bias), x, layer)
    y = torch.addmm(layer.bias, x, layer.weight)
    return y.float() if out is None else out.copy_(y)


def float32_weight(layer: Linear) -> Tensor:
    """[in, out], whatever it is held in."""
    if is_in_parts(layer):
        return joined(layer.weight, layer.weight_scale)
    return layer.weight.float()


def add_linear(x: Tensor, y: Tensor, layer: Linear, *, scratch: Tensor) -> None:
    """x += y @ W + b, in place: x and scratch float32 [N, out], y as `linear` takes it.

    The product and b come first: added to x one after the other, a b that the product cancels would take
    x's last digits with it.
    """
    x.add_(linear(y, layer, out=scratch))
