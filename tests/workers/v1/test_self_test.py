"""The self-test carries the golden case it says it does, and tells a device that computes wrongly."""

import pytest
import torch

from tests.recipe import golden_cases, make_data, make_weights, safetensors_bytes
from workers.v1 import self_test
from workers.v1.config import ModelConfig
from workers.v1.self_test import SelfTest, golden_weights
from workers.v1.weights import load_tensors

CASE = golden_cases()["small-short"]


def test_is_the_golden_case() -> None:
    assert make_data(CASE.data) == self_test.DATA
    assert CASE.seed == self_test.SEED
    assert CASE.loss == self_test.EXPECTED_LOSS
    assert CASE.embedding.tolist() == pytest.approx(self_test.EXPECTED_EMBEDDING, rel=1e-7)


def test_has_the_golden_weights() -> None:
    config = ModelConfig.small()
    ours = load_tensors(golden_weights(), config)
    theirs = load_tensors(safetensors_bytes(make_weights(CASE.config, CASE.weights)), config)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_passes_here_again_and_again() -> None:
    test = SelfTest("cpu", "float32")
    assert [test.run(), test.run()] == [None, None]


@pytest.mark.parametrize("wrong", [CASE.loss * 1.001, float("nan")])
def test_tells_a_wrong_number(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(self_test, "EXPECTED_LOSS", wrong)
    verdict = SelfTest("cpu", "float32").run()
    assert verdict is not None
    assert "loss 0.60118" in verdict
