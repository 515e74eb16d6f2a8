"""The self-test carries the golden case it says it does, and tells a device that computes wrongly."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.recipe import golden_cases, make_data, make_weights, safetensors_bytes
from workers.v1 import self_test
from workers.v1.config import V1_NUM_LAYERS, ModelConfig
from workers.v1.model_runner import ModelRunner
from workers.v1.self_test import SelfTest, golden_weights
from workers.v1.weights import load_tensors

CASE = golden_cases()["small-short"]


def test_is_the_golden_case() -> None:
    assert make_data(CASE.data) == self_test.DATA
    assert CASE.seed == self_test.SEED
    assert CASE.loss == self_test.SMALL.loss
    assert CASE.embedding.tolist() == pytest.approx(self_test.SMALL.embedding, rel=1e-7)


def test_has_the_golden_weights() -> None:
    config = ModelConfig.small()
    ours = load_tensors(golden_weights(), config)
    theirs = load_tensors(safetensors_bytes(make_weights(CASE.config, CASE.weights)), config)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_passes_here_again_and_again() -> None:
    test = SelfTest("cpu", "float32")
    assert [test.run(with_large=False), test.run(with_large=False)] == [None, None]


def test_the_large_one_passes_here() -> None:
    assert SelfTest("cpu", "float32").run(with_large=True) is None


def test_it_has_the_layers_of_the_network() -> None:
    assert replace(self_test.LARGE_CONFIG, num_layers=V1_NUM_LAYERS) == ModelConfig()


@pytest.mark.parametrize("wrong", [CASE.loss * 1.001, float("nan")])
def test_tells_a_wrong_number(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "SMALL", self_test.SMALL._replace(loss=wrong))
    wrong_numbers = SelfTest("cpu", "float32").run(with_large=False)
    assert wrong_numbers is not None
    assert "loss 0.60118" in wrong_numbers


def test_tells_a_device_that_fails_in_large_products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ModelRunner.eval

    def fail_when_large(runner: ModelRunner, *arguments: Any) -> Any:
        if runner.config.embedding_dim > 16:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return run(runner, *arguments)

    monkeypatch.setattr(ModelRunner, "eval", fail_when_large)
    assert SelfTest("cpu", "float32").run(with_large=False) is None
    assert SelfTest("cpu", "float32", small_model=True).run(with_large=True) is None
    with pytest.raises(RuntimeError):
        SelfTest("cpu", "float32").run(with_large=True)
