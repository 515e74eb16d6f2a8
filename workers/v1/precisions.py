"""The precisions that products can have, and how the weights of each are held."""

from collections.abc import Callable
from typing import Literal

import torch

from .model import Linear, Model
from .split_matmul import hold_in_parts

Precision = Literal["float32", "tf32", "bf16", "float32-split"]
"""float32-split: products of two float16 parts on tensor cores (`split_matmul`). What each is worth: docs/gpu.md."""


def set_matmul_precision(precision: Precision) -> None:
    """Of torch's float32 products, for this process: IEEE, or TF32 where that is asked for."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


ATTENTION_DTYPES: dict[Precision, torch.dtype] = {"tf32": torch.float16, "bf16": torch.bfloat16}
"""What attention computes in, where that is not float32. float16 has the 11 significant bits of TF32, for which a GPU
has no fused kernel of its own: that of float32 multiplies three times (see `attention.fused_attention`)."""


def hold_in_bf16(layer: Linear) -> None:
    """Products then run in bfloat16; norms, residuals, softmax of the loss and SIGReg in float32."""
    layer.to(torch.bfloat16)


HOLD: dict[Precision, Callable[[Linear], None]] = {
    "bf16": hold_in_bf16,
    "float32-split": hold_in_parts,
}
"""How the weights of products are held, where not as they are in the file."""


def hold_linear_weights(model: Model, hold: Callable[[Linear], None]) -> None:
    """Every one of them as `hold` does it."""
    for part in model.modules():
        if isinstance(part, Linear):
            hold(part)


def hold_weights(model: Model, precision: Precision) -> None:
    """The weights of all its products, as this precision wants them."""
    if hold := HOLD.get(precision):
        hold_linear_weights(model, hold)
