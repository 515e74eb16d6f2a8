"""Attention against float64: that of a CPU, and the fused one in float16, for which a CPU rounds as a GPU does."""

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.error import error_of
from workers.v1.attention import causal_attention, causal_blocks, fused_attention

TF32_RMS = 5.2e-4
"""Of the same attention whose four factors are rounded to TF32, 11 significant bits."""


@pytest.fixture(scope="module")
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 256, 256, generator=generator) for _ in range(3))
    return 2 * q, k, v


@pytest.mark.parametrize(
    ("num_tokens", "num_heads", "width"), [(1, 3, 4), (63, 4, 4), (65, 4, 4), (1000, 3, 64)]
)
def test_blocks_are_as_exact_as_float32(num_tokens: int, num_heads: int, width: int) -> None:
    """Several sequences, of lengths that no block divides, and keys that are alike, as those of padding are."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, num_heads, num_tokens, width, generator=generator) for _ in range(3))
    k[:, :, num_tokens // 3 :] = k[:, :, num_tokens // 3, None]
    v[:, :, num_tokens // 3 :] = v[:, :, num_tokens // 3, None]
    mixed = torch.full_like(q, float("nan"))
    for block in causal_blocks(q, k, v, mixed):
        causal_attention(block)
    assert error_of(mixed, exact(q, k, v)).rms < 2e-6


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(future, float("-inf")), -1) @ v.double()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_float16_is_as_exact_as_tf32_whatever_the_size_of_the_values(
    qkv: tuple[Tensor, Tensor, Tensor], scale: float
) -> None:
    q, k, v = qkv
    v = v * scale * torch.tensor([1.0, 1e-5, 1e5, 1.0]).view(1, 4, 1, 1)
    for head in range(4):
        found = fused_attention(q, k, v, torch.float16)[:, head]
        assert error_of(found, exact(q, k, v)[:, head]).rms < 1.1 * TF32_RMS


def test_values_of_nothing_but_zeros_give_zeros(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    assert not fused_attention(q, k, torch.zeros_like(v), torch.float16).any()


def test_what_float16_cannot_hold_makes_the_result_not_finite(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    assert not fused_attention(q * 1e5, k, v, torch.float16).isfinite().all()


def test_values_that_are_not_finite_stay_so(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    for value in (float("inf"), float("nan")):
        bad = v.clone()
        bad[0, 1, 7, 3] = value
        assert not fused_attention(q, k, bad, torch.float16).isfinite().all()
