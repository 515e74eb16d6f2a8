"""Other parameters than the network's of today, against an independent float64 arithmetic.

Older documents of the network describe 32 layers, sequences of 8,192, batches of 32 and 1,024 slices; all at once:
`tests/service/test_other_architecture.py`.
"""

from typing import Any

import numpy as np
import pytest

from tests.recipe import golden_cases, make_data, make_weights, safetensors_bytes
from tests.workers.v1.float64_evaluation import evaluate
from workers.v1 import ModelConfig, ModelRunner, SIGRegConfig


def assert_same(config: dict[str, int], size: int, max_seq_len: int, batch_size: int, slices: int) -> None:
    weights = make_weights(config, {"scheme": "scaled", "seed": 7})
    data = make_data({"pattern": "hash", "size": size, "seed": 3})
    loss, embedding = evaluate(
        weights,
        data,
        5,
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        slices=slices,
    )
    runner = ModelRunner(
        ModelConfig(**config),
        max_seq_len=max_seq_len,
        batch_size=batch_size,
        sig_reg=SIGRegConfig(slices=slices),
    )
    output = runner.eval(data, safetensors_bytes(weights), seed=5)
    assert output.loss == pytest.approx(loss, rel=1e-5)
    assert np.abs(output.embedding.numpy() - embedding).max() <= 2e-5 * max(1.0, np.abs(embedding).max())


def small(num_layers: int) -> dict[str, int]:
    return {
        "embedding_dim": 16,
        "pwff_hidden_dim": 32,
        "num_layers": num_layers,
        "num_heads": 4,
        "vocab_size": 264,
    }


def test_the_arithmetic_gives_a_golden_number() -> None:
    case = golden_cases()["small-short"]
    config: dict[str, Any] = dict(case.config)
    loss, embedding = evaluate(
        make_weights(config, case.weights),
        make_data(case.data),
        case.seed,
        num_layers=config["num_layers"],
        num_heads=config["num_heads"],
        max_seq_len=case.max_seq_len,
        batch_size=case.batch_size,
        slices=256,
    )
    assert loss == pytest.approx(case.loss, rel=1e-5)
    assert np.abs(embedding - case.embedding).max() <= 2e-5


def test_1024_slices_and_batches_of_32() -> None:
    assert_same(small(2), size=64 * 33 + 5, max_seq_len=64, batch_size=32, slices=1024)


def test_32_layers() -> None:
    assert_same(small(32), size=200, max_seq_len=128, batch_size=32, slices=256)


def test_the_coefficient_is_the_networks() -> None:
    with pytest.raises(ValueError, match="coefficient"):
        ModelRunner(ModelConfig.small(), sig_reg=SIGRegConfig(coefficient=0.1))
