"""How exact the products of each precision would be on a GPU, emulated on a CPU, against float64.

    python -m benchmarks.emulated_precision

The model of a tensor core: products of factors of 16 bits, or of TF32, are exact; 16 of them (8 in TF32) are added
exactly, the sum to the accumulator exactly, and what lies beyond 24 bits is cut off, not rounded. Cards differ: some
cut each product too, and some keep a few bits more. Float32 rounds after each product, one after the other, as a GPU's
multiply-add does; adding a result to one in memory is one rounding in float32. All inputs are normal, those of the
weight of deviation K^-1/2.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu.error import Error, error_of
from workers.v1.model import Linear
from workers.v1.split_matmul import hold_in_parts, products, split

WIDTHS = (256, 2048, 8192)
NUM_ROWS, NUM_OUT = 32, 64
CHUNK, TF32_CHUNK = 16, 8
CUT_BITS = 53 - 24
"""Of float64's digits, beyond those of float32."""


def cut_off(x: Tensor) -> Tensor:
    """float64 to 24 significant bits, towards 0."""
    return x.view(torch.int64).bitwise_and(-1 << CUT_BITS).view(torch.float64)


def tensor_core(x: Tensor, weight: Tensor, chunk: int = CHUNK) -> Tensor:
    """[N, K], [K, out] -> float32 [N, out]; K is a multiple of `chunk`."""
    (N, K), num_out = x.shape, weight.shape[1]
    chunks_of_x = x.double().view(N, K // chunk, chunk).transpose(0, 1)
    sums = chunks_of_x @ weight.double().view(K // chunk, chunk, num_out)  # (K/chunk, N, out)
    total = torch.zeros_like(sums[0])
    for each in sums:
        total = cut_off(total + each)
    return total.float()


def float32(x: Tensor, weight: Tensor) -> Tensor:
    """The same with a rounding after each product."""
    x, weight = x.double(), weight.double()
    total = x.new_zeros(x.shape[0], weight.shape[1])
    for column, row in zip(x.T, weight, strict=True):
        total = torch.addcmul(total, column[:, None], row).float().double()
    return total.float()


def in_parts(x: Tensor, weight: Tensor, piece: int) -> Tensor:
    """The products that an evaluation makes of parts, each by the tensor core, added in float32."""
    with torch.device("meta"):
        layer = Linear(*weight.shape)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    hold_in_parts(layer)
    out = x.new_zeros(x.shape[0], weight.shape[1])
    for columns, rows, scale in products(split(x), layer, piece):
        out += scale * tensor_core(columns, rows)
    return out


def tf32(x: Tensor) -> Tensor:
    """float32 rounded to TF32's 11 bits."""
    return ((x.view(torch.int32) + (1 << 12)) & -(1 << 13)).view(torch.float32)


PIECES = (max(WIDTHS), 1024, 512, 256)
METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "float32": float32,
    **{f"float32-split, pieces of {piece}": partial(in_parts, piece=piece) for piece in PIECES},
    "tf32": lambda x, weight: tensor_core(tf32(x), tf32(weight), TF32_CHUNK),
    "bf16": lambda x, weight: tensor_core(x.bfloat16(), weight.bfloat16()),
}
"""Pieces as long as the longest product are one piece."""


@torch.inference_mode()
def error(method: str, K: int) -> Error:
    """Of products of K factors, by one of METHODS."""
    generator = torch.Generator().manual_seed(K)
    x = torch.randn(NUM_ROWS, K, generator=generator)
    weight = torch.randn(K, NUM_OUT, generator=generator) / K**0.5
    return error_of(METHODS[method](x, weight), x.double() @ weight.double())


def main() -> None:
    """Print the table."""
    print(f"| rms, largest, shrink | {' | '.join(f'K = {K}' for K in WIDTHS)} |")
    print("|---|" + "---|" * len(WIDTHS))
    for method in METHODS:
        errors = [error(method, K) for K in WIDTHS]
        cells = (f"{each.rms:.1e}, {each.max:.1e}, {each.shrink:+.1e}" for each in errors)
        print(f"| {method} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
