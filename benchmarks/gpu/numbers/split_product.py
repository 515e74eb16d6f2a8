"""The products of float32-split beside those of float32, against float64, in pieces of K of several lengths: on any
input, and on exact ones.

Exact inputs are bf16 numbers: their lower parts are 0, so nothing is lost but what the card loses where it adds up.
A CPU adds up in float32; `benchmarks.emulated_precision` cuts off as a card may.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.gpu.clock import median_seconds
from benchmarks.gpu.error import Error, error_of
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed
from workers.v1.model import Linear
from workers.v1.split_matmul import PIECE_OF_K, add_product, hold_in_parts, products, split

KINDS = ("any inputs", "exact inputs")
PIECES = (256, 512, 1024, 8192)


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
    plain, plain_seconds = _measure(testbed, lambda: x @ weight, exact)
    layer = _layer(weight)
    for piece in PIECES:
        error, seconds = _measure(testbed, _in_pieces(x, layer, piece), exact)
        is_served = piece == PIECE_OF_K
        findings.add(
            f"float32-split product, {name}" + ("" if is_served else f", pieces of {piece}"),
            f"rms {error.rms:.1e}, shrink {error.shrink:+.1e}; float32 {plain.rms:.1e}",
            holds=error.rms <= plain.rms if is_served else None,
            note=f"{plain_seconds / seconds:.2f} times as fast as float32",
            split_rms=error.rms,
            split_max=error.max,
            split_shrink=error.shrink,
            float32_rms=plain.rms,
            float32_max=plain.max,
            split_seconds=seconds,
            float32_seconds=plain_seconds,
        )


def _measure(testbed: Testbed, product: Callable[[], Tensor], exact: Tensor) -> tuple[Error, float]:
    return error_of(product()[:512], exact), median_seconds(testbed.device, product, 3)


def _in_pieces(x: Tensor, layer: Linear, piece: int) -> Callable[[], Tensor]:
    """The product as an evaluation makes it, its splitting included, in pieces of K of this length."""

    def product() -> Tensor:
        out = x.new_zeros(x.shape[0], layer.bias.shape[0])
        for columns, rows, scale in products(split(x), layer, piece):
            add_product(out, columns, rows, scale)
        return out

    return product


def _layer(weight: Tensor) -> Linear:
    """A linear layer of this weight, held in parts."""
    with torch.device("meta"):
        layer = Linear(*weight.shape)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    hold_in_parts(layer)
    return layer
