"""The campaign's weights, made in pieces, are those of the golden recipe."""

from pathlib import Path

import numpy as np

from benchmarks.gpu.setup.weights import make_weights
from tests.recipe import TEST_KEY, golden_cases, write_weights
from tests.recipe import make_weights as tensors_of
from workers.v1 import ModelConfig
from workers.v1.weights import load_tensors


def test_they_are_those_of_the_recipe(tmp_path: Path) -> None:
    case = golden_cases()["medium-3000"]
    plain, encrypted, float16 = (tmp_path / name for name in ("plain", "encrypted", "float16"))
    make_weights(case, plain, encrypted, float16)
    expected = write_weights(tmp_path / "expected", case.config, case.weights)
    assert plain.read_bytes() == expected.read_bytes()
    expected = write_weights(tmp_path / "expected", case.config, case.weights, TEST_KEY)
    assert encrypted.read_bytes() == expected.read_bytes()
    found = load_tensors(float16, ModelConfig(**case.config))
    for name, tensor in tensors_of(case.config, case.weights).items():
        np.testing.assert_array_equal(found[name].numpy(), tensor.astype(np.float16).astype(np.float32))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["encrypted", "expected", "float16", "plain"]
