"""float32 products by parts of 16 bits are as accurate as float32, where sums are rounded as on a CPU."""

from typing import Any

import numpy as np
import pytest
import torch

from tests.recipe import GoldenCase, golden_cases, make_data, make_weights, safetensors_bytes
from workers.v1 import MeanScore, ModelConfig, ModelRunner, running_mean
from workers.v1.forward import ForwardPass
from workers.v1.model import Linear
from workers.v1.precisions import hold_linear_weights
from workers.v1.split_matmul import (
    LEAST_ROW,
    PIECE_OF_K,
    add_split_product,
    hold_in_parts,
    is_in_parts,
    joined,
    products,
    split,
)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def layer_of(weight: torch.Tensor) -> Linear:
    layer = Linear(*weight.shape)
    layer.weight = torch.nn.Parameter(weight, requires_grad=False)
    hold_in_parts(layer)
    return layer


def split_product(x: torch.Tensor, layer: Linear) -> torch.Tensor:
    out = torch.zeros(x.shape[0], layer.bias.shape[0])
    return add_split_product(out, split(x), layer)


def largest_error(y: torch.Tensor, exact: torch.Tensor) -> float:
    return float((y - exact).abs().max() / exact.abs().max())


def test_two_parts_are_the_number_to_23_bits() -> None:
    x = random(1000) * torch.logspace(-3, 4, 1000)
    high, low = split(x[None]).double().view(2, -1)
    assert float(((high + low / 2048 - x) / x).abs().max()) <= 2**-22
    assert float(((high + low / 2048 - x) / x).abs().median()) <= 2**-24


def test_a_weight_is_what_its_parts_make() -> None:
    weight = random(40, 24)
    layer = layer_of(weight)
    assert is_in_parts(layer)
    found = joined(layer.weight, layer.weight_scale)
    assert largest_error(found, weight) <= 2**-23


@pytest.mark.parametrize("K", [16, 256, 2048, 8192])
def test_as_near_to_float64_as_a_float32_product(K: int) -> None:
    x, weight = random(64, K), random(K, 128)
    exact = x.double() @ weight.double()
    found = split_product(x, layer_of(weight))
    allowed = max(2e-7, 1.25 * largest_error(x @ weight, exact))  # two parts lack the last bit
    assert largest_error(found, exact) <= allowed


@pytest.mark.parametrize("K", [1, 512, 513, 1536])
def test_pieces_are_all_of_k_once(K: int) -> None:
    layer = layer_of(torch.ones(K, 1))
    lower, *large = [columns.shape[1] for columns, _, _ in products(split(torch.ones(1, K)), layer)]
    assert lower == 2 * K
    assert sum(large) == K
    assert max(large) <= PIECE_OF_K


@pytest.mark.parametrize(
    "weight",
    [
        torch.tensor([[1.0, 1e-12], [1.0, 1e-12]]),  # a column far below the others
        torch.tensor([[1.0, 1.0], [1e-12, 1e-12]]),  # a row
        torch.tensor([[1.0, torch.inf]]),
        torch.tensor([[1.0, torch.nan]]),
        torch.zeros(2, 2),
        torch.full((2, 2), 1e-42),
    ],
)
def test_a_weight_that_float16_does_not_carry_stays_in_float32(weight: torch.Tensor) -> None:
    layer = layer_of(weight)
    assert layer.weight.dtype == torch.float32
    assert not is_in_parts(layer)


@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1.0, 1e6, 1e30])
def test_a_weight_of_any_size_is_carried(scale: float) -> None:
    x, weight = random(8, 64), random(64, 16) * scale
    layer = layer_of(weight)
    assert is_in_parts(layer)
    assert largest_error(split_product(x, layer), x.double() @ weight.double()) <= 3e-7


@pytest.mark.parametrize("size", [LEAST_ROW / 2, 1e-30, 7e4, torch.inf, torch.nan])
def test_a_row_that_float16_does_not_carry_is_nan_and_no_other(size: float) -> None:
    x = random(3, 64)
    x[1] *= size / x[1].abs().amax()
    found = split_product(x, layer_of(random(64, 16)))
    assert found[1].isnan().all() or not found[1].isfinite().any()
    assert found[[0, 2]].isfinite().all()


def test_a_row_of_zeros_is_carried() -> None:
    assert torch.equal(split_product(torch.zeros(1, 8), layer_of(random(8, 4))), torch.zeros(1, 4))


def evaluate(case: GoldenCase, weights: dict[str, Any] | None = None) -> MeanScore:
    runner = ModelRunner(ModelConfig(**case.config), max_seq_len=case.max_seq_len, batch_size=case.batch_size)
    arrays = weights or make_weights(case.config, case.weights)
    model = runner.load(safetensors_bytes(arrays))
    hold_linear_weights(model.model, hold_in_parts)
    data = make_data(case.data)
    return running_mean(runner.eval_batches(model, data, case.seed, range(runner.num_batches(len(data)))))


@pytest.mark.parametrize("name", ["small-1025", "medium-3000", "wide-head-256", "leak-mixed"])
def test_equals_the_rust_runner(name: str) -> None:
    case = golden_cases()[name]
    mean = evaluate(case)
    assert mean.loss == pytest.approx(case.loss, rel=1e-5)
    assert mean.attends_to_future is case.attends_to_future
    tolerance = 1e-4 if case.attends_to_future else 2e-5
    assert float(np.abs(mean.embedding - case.embedding).max()) <= tolerance * max(
        1, np.abs(case.embedding).max()
    )


def test_activations_that_float16_does_not_carry_are_evaluated_in_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values of 1e6 and outputs of 1e-6 of it: the same function as without the factors, but beyond float16's range."""
    case = golden_cases()["small-1025"]
    weights = dict(make_weights(case.config, case.weights))
    for name in weights:
        if "attention.value" in name:
            weights[name] = weights[name] * np.float32(2**20)
        if "attention.output.weight" in name:
            weights[name] = weights[name] * np.float32(2**-20)
    paths = []
    made = ForwardPass.__init__

    def noted(self: ForwardPass, *args: Any, reference: bool, **others: Any) -> None:
        paths.append(reference)
        made(self, *args, reference=reference, **others)

    monkeypatch.setattr(ForwardPass, "__init__", noted)
    mean = evaluate(case, weights)
    assert set(paths) == {False, True}
    assert mean.loss == pytest.approx(case.loss, rel=1e-5)
    assert float(np.abs(mean.embedding - case.embedding).max()) <= 2e-5 * max(1, np.abs(case.embedding).max())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("K", [2048, 8192])
def test_cuda_is_as_near_to_float64_as_the_emulation(K: int) -> None:
    """Which cuts sums off where a card may round them: 8e-7 at worst, `benchmarks.emulated_precision`."""
    x, weight = random(64, K), random(K, 128)
    layer = layer_of(weight).to("cuda")
    out = torch.zeros(64, 128, device="cuda")
    found = add_split_product(out, split(x.cuda()), layer).cpu()
    exact = x.double() @ weight.double()
    assert float((found - exact).norm() / exact.norm()) <= 1.2e-6
