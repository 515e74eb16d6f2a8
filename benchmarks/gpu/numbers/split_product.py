"""The products of float32-split beside those of float32, against float64: on any input, and on exact ones.

Exact inputs are bf16 numbers: they have one part each, so nothing is lost but what the card loses where it adds up.
A CPU adds up in float32: there this is the emulation that the tests hold.
"""

import torch
from torch import Tensor

from benchmarks.gpu.clock import median_seconds
from benchmarks.gpu.error import Error, error_of
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed
from workers.v1.forward import linear
from workers.v1.model import Linear
from workers.v1.split_matmul import stack_parts

KINDS = ("any inputs", "exact inputs")


@torch.inference_mode()
def run(testbed: Testbed, findings: Findings) -> None:
    testbed.runner("float32")  # sets the precision of products for the whole process
    num_rows, D, F = (16_384, 2048, 8192) if testbed.is_gpu else (32, 64, 256)
    for shape, K in (("D to D", D), ("F to D", F)):
        for kind in KINDS:
            generator = torch.Generator(testbed.device).manual_seed(K)
            x, weight = (
                torch.randn(*shape, device=testbed.device, generator=generator)
                for shape in ((num_rows, K), (K, D))
            )
            weight /= K**0.5
            if kind == "exact inputs":
                x, weight = x.bfloat16().float(), weight.bfloat16().float()
            _compare(testbed, findings, f"{shape}, {kind}", x, weight)


def _compare(testbed: Testbed, findings: Findings, name: str, x: Tensor, weight: Tensor) -> None:
    exact = x[:512].double() @ weight.double()
    errors: list[Error] = []
    seconds: list[float] = []
    for in_parts in (False, True):
        layer = _layer(weight, in_parts)
        errors.append(error_of(linear(x, layer)[:512], exact))
        seconds.append(median_seconds(testbed.device, lambda layer=layer: linear(x, layer), 3))  # type: ignore[misc]
    plain, split = errors
    findings.add(
        f"float32-split product, {name}",
        f"rms {split.rms:.1e}, shrink {split.shrink:+.1e}; float32 {plain.rms:.1e}",
        holds=split.rms <= plain.rms,
        note=f"{seconds[0] / seconds[1]:.2f} times as fast as float32",
        split_rms=split.rms,
        split_max=split.max,
        split_shrink=split.shrink,
        float32_rms=plain.rms,
        float32_max=plain.max,
        split_seconds=seconds[1],
        float32_seconds=seconds[0],
    )


def _layer(weight: Tensor, in_parts: bool) -> Linear:
    """A linear layer without bias, held as the precision holds it."""
    with torch.device("meta"):
        layer = Linear(*weight.shape)
    held = stack_parts(weight) if in_parts else weight
    layer.weight = torch.nn.Parameter(held, requires_grad=False)
    layer.bias = torch.nn.Parameter(weight.new_zeros(weight.shape[1]), requires_grad=False)
    return layer
