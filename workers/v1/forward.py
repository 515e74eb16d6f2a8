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
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch_progress import BatchProgress
from .cancellation import CancelCheck
from .config import V1_LAYER_NORM_EPS, V1_MASKED_SCORE
from .model import Attention, FeedForward, Layer, LayerNorm, Linear, Model, rotary_angles
from .runner_order import mean_of_rows
from .split_matmul import add_split_product, is_stacked

MAX_SAFE_SCORE = 9_800.0
"""-1e4 + 104 = -9,896 is where masked keys begin to win weight; the rest is a margin for rounding, of the bound
and of scores, whose error near 1e4 stays below 1."""

MAX_SAFE_OFFSET = 100.0
"""A mean is off by about 6e-8 of its size: at this offset by 6e-6 of a deviation."""

ROWS_PER_TILE = 1024
"""Rows of the feed-forward layer done at once, so that its hidden [rows, F] stays small."""

SCORES_PER_BLOCK = 1 << 22
"""Scores the reference path holds at once: 16 MiB of float32."""


class ForwardPass:
    """One pass over one micro-batch. After `representations` the numbers that a guard looks at hold."""

    def __init__(
        self, model: Model, *, reference: bool, check_cancelled: CancelCheck, progress: BatchProgress
    ) -> None:
        self.model = model
        self.progress = progress
        self.reference = reference
        self.check_cancelled = check_cancelled
        device = model.embedding.weight.device
        self.score_bound = torch.zeros((), device=device)
        """Fast path: no score of this pass is larger in magnitude. A scalar on the device."""
        self.offset = torch.zeros((), device=device)
        """Fast path: no row had a larger |mean| / deviation before a norm. A scalar on the device."""
        self.attends_to_future = torch.zeros((), dtype=torch.bool, device=device)
        """Reference path: a masked key got a softmax weight above 0. A scalar on the device."""

    def guard(self) -> Tensor:
        """`score_bound`, `offset` and `attends_to_future`: [3] on the device."""
        return torch.stack([self.score_bound, self.offset, self.attends_to_future])

    def representations(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """r, the final norm's output: token ids and positions, both int64 [B, T] -> float32 [B, T, D]."""
        model = self.model
        B, T = token_ids.shape
        cos, sin = rotary_angles(positions, model.config)  # (B, T, K/2)
        cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)  # (B, T, 1, K/2)
        x = F.embedding(token_ids.flatten(), model.embedding.weight)  # (N, D)
        # Every layer writes into the same memory: new pages cost more than what they are filled with.
        self.normed, self.queries, self.keys, self.values = (torch.empty_like(x) for _ in range(4))
        self.hidden = x.new_empty(min(x.shape[0], ROWS_PER_TILE), model.config.pwff_hidden_dim)  # (R, F)
        for layer in cast(list[Layer], model.encoder.layers):
            self.check_cancelled()
            self._add_attention(x, self._norm(x, layer.norm_1), layer.attention, (B, T), cos, sin)
            self.check_cancelled()
            add_feed_forward(x, self._norm(x, layer.norm_2), layer.pwff, self.hidden)
            self.progress.layer_done()
        return self._norm(x, model.final_norm).view(B, T, -1)

    def _norm(self, x: Tensor, norm: LayerNorm) -> Tensor:
        """[N, D]. Two passes on both paths: torch's one kernel takes away what rounding leaves of a large
        common offset, which upstream does not, and at an offset of 1e3 the embedding would differ by 7e-5."""
        if self.reference:
            return reference_layer_norm(x, norm, out=self.normed)
        normed, offset = layer_norm(x, norm, out=self.normed)
        self.offset = torch.maximum(self.offset, offset)
        return normed

    def _add_attention(
        self,
        x: Tensor,
        normed: Tensor,
        attention: Attention,
        batch: tuple[int, int],
        cos: Tensor,
        sin: Tensor,
    ) -> None:
        """x += attention(normed), in place."""
        shape = (*batch, attention.num_heads, attention.head_dim)
        q = linear(normed, attention.query, out=self.queries).view(shape)  # (B, T, H, K)
        k = linear(normed, attention.key, out=self.keys).view(shape)
        v = linear(normed, attention.value, out=self.values).view(shape)
        if not self.reference:
            # Rotation keeps lengths, so the bound may be taken before it.
            self.score_bound = torch.maximum(self.score_bound, largest_score(q, k))
        rotate_in_place(q, cos, sin, scratch=normed)
        rotate_in_place(k, cos, sin, scratch=normed)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))  # (B, H, T, K)
        if self.reference:
            mixed = self._filled_attention(q, k, v)
        else:
            mixed = causal_attention(q, k, v, product_dtype(attention.output, x.shape[-1]))
        add_linear(x, mixed.transpose(1, 2).reshape(x.shape), attention.output, scratch=normed)

    def _filled_attention(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention with future scores filled with -1e4, a block of query rows at a time: [B, H, T, K]."""
        B, H, T, K = q.shape
        rows_per_block = max(1, SCORES_PER_BLOCK // (H * T))
        mixed = torch.empty_like(q)
        keys = torch.arange(T, device=q.device)
        for b in range(B):
            for start in range(0, T, rows_per_block):
                rows = slice(start, min(start + rows_per_block, T))
                future = keys > keys[rows, None]  # (R, T)
                scores = (q[b, :, rows] @ k[b].transpose(-2, -1)) / K**0.5  # (H, R, T)
                scores.masked_fill_(future, V1_MASKED_SCORE)
                weights = torch.softmax(scores, dim=-1)
                self.attends_to_future |= ((weights > 0) & future).any()
                mixed[b, :, rows] = weights @ v[b]
            self.check_cancelled()
        return mixed


def largest_score(q: Tensor, k: Tensor) -> Tensor:
    """A bound on every |q . k| / sqrt(K): q, k [B, T, H, K] -> scalar, NaN if anything is."""
    longest_q = torch.linalg.vector_norm(q, dim=-1).amax(dim=(0, 1))  # (H)
    longest_k = torch.linalg.vector_norm(k, dim=-1).amax(dim=(0, 1))
    bound: Tensor = (longest_q * longest_k).amax() / q.shape[-1] ** 0.5
    return bound


def causal_attention(q: Tensor, k: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
    """The fused causal kernel, run in `dtype`: float32 [B, H, T, K]. It never looks at the future.

    On a GPU torch takes its memory-efficient kernel for float32 and K = 256, which multiplies as three products in TF32
    whatever the matmul precision is; how far that is from float32 products is unmeasured.
    """
    q, k, v = (part.to(dtype) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).float()


def rotate_in_place(x: Tensor, cos: Tensor, sin: Tensor, *, scratch: Tensor) -> None:
    """Rotary positions, half-split: x [B, T, H, K], cos and sin [B, T, 1, K / 2], scratch as large as x."""
    a, b = x.chunk(2, dim=-1)  # (B, T, H, K/2), views
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


def product_dtype(layer: Linear, num_in: int) -> torch.dtype:
    """What products of this layer are accurate to: bf16 if it is held in bf16, but float32 if in three parts."""
    return torch.float32 if is_stacked(layer.weight, num_in) else layer.weight.dtype


def linear(x: Tensor, layer: Linear, *, out: Tensor | None = None) -> Tensor:
    """x @ W + b: [N, in] -> float32 [N, out]; the product in the precision W is held in."""
    if layer.weight.dtype == x.dtype:
        return torch.addmm(layer.bias, x, layer.weight, out=out)
    if is_stacked(layer.weight, x.shape[-1]):
        out = x.new_empty(x.shape[0], layer.bias.shape[0]) if out is None else out
        return add_split_product(out.copy_(layer.bias), x, layer.weight)
    y = torch.addmm(layer.bias, x.to(layer.weight.dtype), layer.weight)
    return y.float() if out is None else out.copy_(y)


def add_linear(x: Tensor, y: Tensor, layer: Linear, *, scratch: Tensor) -> None:
    """x += y @ W + b, in place: x and scratch [N, out], y [N, in].

    The product and b come first: added to x one after the other, a b that the product cancels would take
    x's last digits with it.
    """
    x.add_(linear(y, layer, out=scratch))


def add_feed_forward(x: Tensor, normed: Tensor, pwff: FeedForward, hidden: Tensor) -> None:
    """x += gelu(normed Wi + bi) Wo + bo, in place, a tile of rows at a time: [N, D]; hidden [R, F] is scratch.

    normed is used up.
    """
    for start in range(0, x.shape[0], ROWS_PER_TILE):
        rows = slice(start, start + ROWS_PER_TILE)
        tile = hidden[: x[rows].shape[0]]
        linear(normed[rows], pwff.linear_inner, out=tile)  # (R, F)
        torch.ops.aten.gelu_(tile)
        add_linear(x[rows], tile, pwff.linear_outer, scratch=normed[rows])
