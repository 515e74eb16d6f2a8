"""What products in parts cost beside the products, counted on torch's meta device at full size: kernels and bytes."""

from typing import Any, NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from workers.v1 import ModelConfig
from workers.v1.batch_progress import BatchProgress, ignore_fraction
from workers.v1.forward import ForwardPass
from workers.v1.model import Linear, Model
from workers.v1.team import OneThread

B, T = 16, 1024
VIEWS = {
    "view",
    "_unsafe_view",
    "split",
    "slice",
    "select",
    "unsqueeze",
    "expand",
    "transpose",
    "detach",
    "alias",
    "t",
}
MAKES_NOTHING = {"empty", "new_empty", "empty_like", "empty_strided"}
FACTORS = {"addmm": 1, "mm": 0}
"""Where the factors of a product begin among its arguments; what comes before is what it is added to."""


class Traffic(NamedTuple):
    """Of one layer without its attention kernel."""

    kernels: int
    bytes: int
    """Read and written, the factors of products left out."""


class Count(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators that a GPU would run as kernels of ours."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kernels = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name in VIEWS | MAKES_NOTHING or "attention" in name:
            return result
        read = [each for each in args[: FACTORS.get(name)] if isinstance(each, torch.Tensor)]
        if name in ("copy_", "fill_"):
            read = read[1:]
        self.kernels += 1
        self.bytes += sum(each.nbytes for each in (*read, result) if isinstance(each, torch.Tensor))
        return result


def hold_on_meta(layer: Linear, precision: str) -> None:
    if precision == "float32-split":  # whether a weight fits is asked of its numbers, which are not there
        shape = (2 * layer.num_in, layer.bias.shape[0])
        layer.weight = torch.nn.Parameter(torch.empty(shape, dtype=torch.float16, device="meta"), False)


def traffic(precision: str, num_layers: int) -> Traffic:
    with torch.device("meta"):
        model = Model(ModelConfig(num_layers=num_layers)).requires_grad_(False)
        tokens = torch.empty((B, T), dtype=torch.int64)
    for part in model.modules():
        if isinstance(part, Linear):
            hold_on_meta(part, precision)
    count = Count()
    with torch.inference_mode(), count:
        progress = BatchProgress(model.config, T, 0, 1, ignore_fraction)
        forward = ForwardPass(model, OneThread(lambda: None), reference=False, progress=progress)
        forward.representations(tokens, tokens)
    return Traffic(count.kernels, count.bytes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "kernels", "gigabytes"),
    [("float32", 73, 9.33), ("float32-split", 271, 30.74)],
)
def test_a_layer(precision: str, kernels: int, gigabytes: float) -> None:
    """Of 16 sequences."""
    one, two = traffic(precision, 1), traffic(precision, 2)
    assert two.kernels - one.kernels == kernels
    assert (two.bytes - one.bytes) / 1e9 == pytest.approx(gigabytes, abs=0.01)
