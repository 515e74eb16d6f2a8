"""float32 by three bf16 parts: as accurate as float32, shown on a CPU, where the products have the same numbers."""

import numpy as np
import pytest
import torch

from tests.recipe import golden_cases, make_data, make_weights, safetensors_bytes
from workers.v1 import ModelConfig, ModelRunner, running_mean
from workers.v1.model_runner import hold_linear_weights_in_parts
from workers.v1.split_matmul import add_split_product, product, split, stack_parts


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_parts_are_the_number() -> None:
    x = random(1000) * torch.logspace(-25, 30, 1000)
    first, second, third = (part.float() for part in split(x))
    assert torch.equal(third + second + first, x)


@pytest.mark.parametrize("K", [16, 256, 2048, 8192])
def test_as_near_to_float64_as_a_float32_product(K: int) -> None:
    x, weight = random(64, K), random(K, 128)
    exact = x.double() @ weight.double()

    def error(y: torch.Tensor) -> float:
        return float((y - exact).abs().max() / exact.abs().max())

    assert error(add_split_product(torch.zeros(64, 128), x, stack_parts(weight))) <= max(
        2e-7, error(x @ weight)
    )


@pytest.mark.parametrize("name", ["small-1025", "medium-3000", "wide-head-256", "leak-mixed"])
def test_equals_the_rust_runner(name: str) -> None:
    case = golden_cases()[name]
    runner = ModelRunner(ModelConfig(**case.config), max_seq_len=case.max_seq_len, batch_size=case.batch_size)
    model = runner.load(safetensors_bytes(make_weights(case.config, case.weights)))
    hold_linear_weights_in_parts(model.model)
    data = make_data(case.data)
    mean = running_mean(runner.eval_batches(model, data, case.seed, range(runner.num_batches(len(data)))))
    assert mean.loss == pytest.approx(case.loss, rel=1e-5)
    assert mean.attends_to_future is case.attends_to_future
    tolerance = 1e-4 if case.attends_to_future else 2e-5
    assert float(np.abs(mean.embedding - case.embedding).max()) <= tolerance * max(
        1, np.abs(case.embedding).max()
    )


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_adds_up_in_float32() -> None:
    x, weight = random(64, 2048).bfloat16(), random(2048, 128).bfloat16()
    torch.testing.assert_close(
        product(x.cuda(), weight.cuda()).cpu(), product(x, weight), rtol=1e-5, atol=1e-4
    )
