"""Sums in the runner's order, and weights and data that show the order in the result."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.recipe import SMALL_CONFIG, golden_cases, make_data, make_weights, safetensors_bytes
from workers.v1 import ModelConfig, ModelRunner, runner_order

TEXT = make_data({"pattern": "text", "size": 100})


def in_lanes(values: NDArray[np.float32]) -> np.float32:
    """ndarray's unrolled fold, one addition at a time."""
    lanes = [np.float32(0)] * 8
    end = len(values) // 8 * 8
    for i, value in enumerate(values[:end]):
        lanes[i % 8] += value
    total = np.float32(0)
    for a, b in zip(lanes[:4], lanes[4:], strict=True):
        total += a + b
    for value in values[end:]:
        total += value
    return total


@pytest.mark.parametrize("size", [1, 7, 8, 9, 16, 1000, 16_384])
def test_a_mean_is_the_runners_to_the_bit(size: int) -> None:
    values = np.random.default_rng(size).normal(3, 1, size).astype(np.float32)
    expected = in_lanes(values) / np.float32(size)
    assert runner_order.mean(values) == expected
    rows = torch.from_numpy(np.stack([values, values[::-1]]))
    assert runner_order.mean_of_rows(rows)[0].item() == expected


def test_other_axes_are_added_slice_by_slice() -> None:
    x = np.random.default_rng(0).normal(3, 1, (2, 1000, 16)).astype(np.float32)
    total = np.zeros((2, 16), dtype=np.float32)
    for token in range(1000):
        total += x[:, token]
    assert torch.equal(
        runner_order.mean_over_tokens(torch.from_numpy(x)), torch.from_numpy(total / np.float32(1000))
    )
    assert np.array_equal(runner_order.mean_over_sequences(total), (total[0] + total[1]) / np.float32(2))


def test_equal_losses_drift_as_they_do_in_the_runner() -> None:
    """3,000 zeros: nearly every token has the same loss, whose exact mean is 2e-6 away."""
    case = golden_cases()["small-zeros"]
    weights = safetensors_bytes(make_weights(case.config, case.weights))
    output = ModelRunner(ModelConfig(**case.config)).eval(make_data(case.data), weights, case.seed)
    assert output.loss == pytest.approx(case.loss, rel=3e-7)
    assert np.abs(output.embedding.numpy() - case.embedding).max() < 2e-6


def loss_of(changed: dict[str, Any], data: bytes = TEXT) -> float:
    """The small model's, with some of its tensors filled with one number or replaced."""
    weights = make_weights(SMALL_CONFIG, {"scheme": "scaled", "seed": 7, "gain": 1.0})
    for name, value in changed.items():
        weights[name] = np.broadcast_to(np.float32(value), weights[name].shape).copy()
    return ModelRunner(ModelConfig.small()).eval(data, safetensors_bytes(weights), seed=1).loss


@pytest.mark.parametrize("value", [1e24, 3e25, 7.3e30])
def test_rows_of_one_number_are_nothing_after_a_norm(value: float) -> None:
    """Their mean is that very number in the runner's order, and an ulp off in others."""
    assert loss_of({"embedding.weight": value}) == pytest.approx(
        loss_of({"embedding.weight": 1e25}), rel=1e-6
    )


@pytest.mark.parametrize("size", [2.0**12, 2.0**20, 2.0**24])
def test_a_bias_that_the_product_cancels_takes_nothing_along(size: float) -> None:
    layer = "encoder.layers.0."
    one_hidden_unit = np.zeros((32, 16), dtype=np.float32)
    one_hidden_unit[0] = 1.0
    part = {
        f"{layer}norm_2.gamma": 0.0,
        f"{layer}norm_2.beta": 1.0,
        f"{layer}pwff.linear_inner.weight": 0.0,
        f"{layer}pwff.linear_inner.bias": one_hidden_unit[:, 0] * 32,  # gelu(32) = 32
    }
    cancelled = part | {
        f"{layer}pwff.linear_outer.weight": one_hidden_unit * (-size / 32),
        f"{layer}pwff.linear_outer.bias": size,
    }
    nothing = part | {f"{layer}pwff.linear_outer.weight": 0.0, f"{layer}pwff.linear_outer.bias": 0.0}
    assert loss_of(cancelled) == pytest.approx(loss_of(nothing), rel=1e-6)


def test_a_mean_that_overflows_is_not_finite_as_in_the_runner() -> None:
    bias = np.zeros(264, dtype=np.float32)
    bias[3] = 1e37
    with pytest.raises(Exception, match="the loss is inf"):
        loss_of({"predictor.bias": bias})
