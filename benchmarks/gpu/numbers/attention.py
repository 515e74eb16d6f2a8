"""Attention of one layer in float32: which kernel torch takes, how far it is from float64, and what others give."""

import re
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.clock import median_seconds, synchronize
from benchmarks.gpu.error import Error, error_of
from benchmarks.gpu.findings import NEEDS_GPU, Findings
from benchmarks.gpu.testbed import Testbed
from workers.v1.attention import fused_attention
from workers.v1.precisions import ATTENTION_DTYPES

ROWS_PER_BLOCK = 256

Way = Callable[[Tensor, Tensor, Tensor], Tensor]


@torch.inference_mode()
def run(testbed: Testbed, findings: Findings) -> None:
    testbed.runner("float32")  # sets the precision of products for the whole process
    B, H, T, K = (16, 8, 1024, 256) if testbed.is_gpu else (1, 2, 128, 64)
    generator = torch.Generator(testbed.device).manual_seed(0)
    q, k, v = (
        torch.randn(B, T, H, K, device=testbed.device, generator=generator).transpose(1, 2) for _ in range(3)
    )
    q = q * 2  # so that the softmax is not flat
    exact = _exact(q[0], k[0], v[0])
    findings.add("attention kernel, float32", _kernels(testbed, q, k, v))
    ways: dict[str, Way] = {
        "as it runs": lambda q, k, v: fused_attention(q, k, v, torch.float32),
        "torch's math": _math,
        f"blocks of {ROWS_PER_BLOCK} rows, plain products": _blocks,
    }
    for name, way in ways.items():
        error = error_of(way(q, k, v)[0], exact)
        seconds = median_seconds(testbed.device, partial(way, q, k, v), 3)
        _add(findings, f"attention, {name}", error, seconds)
    for precision, dtype in ATTENTION_DTYPES.items():
        name = f"attention, {precision}"
        if not testbed.is_gpu:
            findings.missing(name, NEEDS_GPU)
            continue
        way = partial(fused_attention, dtype=dtype)
        error = error_of(way(q, k, v)[0], exact)
        _add(findings, name, error, median_seconds(testbed.device, partial(way, q, k, v), 3))


def _add(findings: Findings, name: str, error: Error, seconds: float) -> None:
    findings.add(
        name,
        f"rms {error.rms:.1e}, max {error.max:.1e}, shrink {error.shrink:+.1e}; {seconds * 1e3:.2f} ms a layer",
        rms=error.rms,
        max=error.max,
        shrink=error.shrink,
        seconds=seconds,
    )


def _exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """[H, T, K] in float64."""
    q, k, v = q.double(), k.double(), v.double()
    T, K = q.shape[-2:]
    future = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
    return torch.softmax((q @ k.mT / K**0.5).masked_fill_(future, float("-inf")), -1) @ v


def _math(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Products of cuBLAS in float32, a block of rows at a time, the keys up to the end of the block only."""
    T, K = q.shape[-2:]
    mixed = torch.empty_like(q)
    places = torch.arange(T, device=q.device)
    for start in range(0, T, ROWS_PER_BLOCK):
        end = min(start + ROWS_PER_BLOCK, T)
        scores = (q[:, :, start:end] @ k[:, :, :end].mT).mul_(K**-0.5)
        scores.masked_fill_(places[:end] > places[start:end, None], float("-inf"))
        mixed[:, :, start:end] = torch.softmax(scores, -1) @ v[:, :, :end]
    return mixed


def _kernels(testbed: Testbed, q: Tensor, k: Tensor, v: Tensor) -> str:
    """What torch calls for attention as it runs, down to the card's kernels."""
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if testbed.is_gpu else [])]
    with profile(activities=kinds) as found:
        fused_attention(q, k, v, torch.float32)
        synchronize(testbed.device)
    names = {event.key for event in found.key_averages()}
    words = r"_scaled_dot_product_\w+|fmha\w*|flash_fwd\w*|attention_kernel\w*"
    matches = {match.group() for name in names for match in re.finditer(words, name)}
    return ", ".join(sorted(matches)) or "none of the fused ones"
