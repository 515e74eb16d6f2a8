"""What each precision may differ by holds where a CPU emulates its roundings, and is missed by a wrong number."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks.gpu.tolerances import TOLERANCES, deviation
from tests.recipe import golden_cases, make_data, make_weights, safetensors_bytes
from workers.types import Precision
from workers.v1 import MeanScore, ModelConfig, ModelRunner, batch_scorer, forward, running_mean
from workers.v1.model import Linear
from workers.v1.precisions import ATTENTION_DTYPES, hold_in_bf16, hold_linear_weights

CASES = ["tiny-three-batches", "small-1-byte", "small-1025", "leak-mixed"]


def evaluate(name: str, *, in_bf16: bool = False) -> MeanScore:
    case = golden_cases()[name]
    runner = ModelRunner(ModelConfig(**case.config), max_seq_len=case.max_seq_len, batch_size=case.batch_size)
    model = runner.load(safetensors_bytes(make_weights(case.config, case.weights)))
    if in_bf16:
        hold_linear_weights(model.model, hold_in_bf16)
    data = make_data(case.data)
    return running_mean(runner.eval_batches(model, data, case.seed, range(runner.num_batches(len(data)))))


def tf32(x: torch.Tensor) -> torch.Tensor:
    """Rounded to the 11 significant bits that TF32 has."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("name", CASES)
def test_bf16(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ATTENTION_DTYPES, "float32", ATTENTION_DTYPES["bf16"])
    found = deviation(golden_cases()[name], evaluate(name, in_bf16=True), "bf16")
    assert found.is_allowed
    assert found.has_flag
    assert not deviation(golden_cases()[name], evaluate(name, in_bf16=True), "float32").is_allowed


@pytest.mark.parametrize("name", CASES)
def test_tf32(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def linear(x: torch.Tensor, layer: Linear, *, out: torch.Tensor | None = None) -> torch.Tensor:
        return torch.addmm(layer.bias, tf32(x), tf32(layer.weight), out=out)

    for module in (forward, batch_scorer):
        monkeypatch.setattr(module, "linear", linear)
    monkeypatch.setitem(ATTENTION_DTYPES, "float32", ATTENTION_DTYPES["tf32"])
    found = deviation(golden_cases()[name], evaluate(name), "tf32")
    assert found.is_allowed
    assert found.has_flag
    assert not deviation(golden_cases()[name], evaluate(name), "float32").is_allowed


@pytest.mark.parametrize("precision", TOLERANCES)
def test_a_wrong_number_is_not_allowed(precision: Precision) -> None:
    case = golden_cases()["small-short"]
    right = evaluate(case.name)
    assert deviation(case, right, precision).is_allowed
    for wrong in (
        replace(right, loss=right.loss * 1.2),
        replace(right, loss=np.nan),
        replace(right, embedding=right.embedding + np.float32(0.2)),
        replace(right, embedding=np.full_like(right.embedding, np.nan)),
    ):
        assert not deviation(case, wrong, precision).is_allowed
