"""The fused attention in the dtypes of the precisions, against float64; on a CPU, whose kernels round as a GPU's do."""

import pytest
import torch
from torch import Tensor

from benchmarks.gpu.error import error_of
from workers.v1.forward import causal_attention

TF32_RMS = 5.2e-4
"""Of the same attention whose four factors are rounded to TF32, 11 significant bits."""


@pytest.fixture(scope="module")
def qkv() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 4, 256, 256, generator=generator) for _ in range(3))
    return 2 * q, k, v


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = q.double() @ k.double().mT / 16
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return torch.softmax(scores.masked_fill(future, float("-inf")), -1) @ v.double()


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_float16_is_as_exact_as_tf32_whatever_the_size_of_the_values(
    qkv: tuple[Tensor, Tensor, Tensor], scale: float
) -> None:
    q, k, v = qkv
    v = v * scale * torch.tensor([1.0, 1e-5, 1e5, 1.0]).view(1, 4, 1, 1)
    for head in range(4):
        found = causal_attention(q, k, v, torch.float16)[:, head]
        assert error_of(found, exact(q, k, v)[:, head]).rms < 1.1 * TF32_RMS


def test_values_of_nothing_but_zeros_give_zeros(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    assert not causal_attention(q, k, torch.zeros_like(v), torch.float16).any()


def test_what_float16_cannot_hold_makes_the_result_not_finite(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    assert not causal_attention(q * 1e5, k, v, torch.float16).isfinite().all()


def test_values_that_are_not_finite_stay_so(qkv: tuple[Tensor, Tensor, Tensor]) -> None:
    q, k, v = qkv
    for value in (float("inf"), float("nan")):
        bad = v.clone()
        bad[0, 1, 7, 3] = value
        assert not causal_attention(q, k, bad, torch.float16).isfinite().all()
