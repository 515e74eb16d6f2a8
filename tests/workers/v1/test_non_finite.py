"""NaN and infinity in a weights file are found and named, whatever its dtype, encrypted or not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.recipe import SMALL_CONFIG, TEST_KEY, RawTensor, encrypt, make_weights, safetensors_bytes
from workers.v1.config import ModelConfig
from workers.v1.errors import DecryptionFailed, WeightsInvalid
from workers.v1.non_finite import NonFiniteTensor, find_non_finite

QUERY = "encoder.layers.1.attention.query.weight"


def weights(**replaced: Any) -> dict[str, Any]:
    tensors: dict[str, Any] = make_weights(SMALL_CONFIG, {"scheme": "scaled", "seed": 7})
    return tensors | {name.replace("__", "."): tensor for name, tensor in replaced.items()}


def find(folder: Path, tensors: dict[str, Any], key: bytes | None = None) -> list[NonFiniteTensor]:
    path = folder / "weights"
    content = safetensors_bytes(tensors)
    path.write_bytes(content if key is None else encrypt(content))
    return find_non_finite(path, key, config=ModelConfig.small())


def as_bf16(values: np.ndarray[Any, Any]) -> RawTensor:
    return RawTensor("BF16", values.shape, (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes())


@pytest.mark.parametrize("key", [None, TEST_KEY], ids=["plain", "encrypted"])
@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<f2", "bf16"])
def test_counts_by_tensor(tmp_path: Path, dtype: str, key: bytes | None) -> None:
    query, bias = np.ones((16, 16)), np.ones(264)
    query[3, 4], query[5, :2], bias[7] = np.nan, np.inf, -np.inf
    tensors = weights()
    for name, values in (QUERY, query), ("predictor.bias", bias):
        tensors[name] = as_bf16(values) if dtype == "bf16" else values.astype(dtype)
    assert find(tmp_path, tensors, key) == [
        NonFiniteTensor(QUERY, num_nan=1, num_infinite=2, num_elements=256),
        NonFiniteTensor("predictor.bias", num_nan=0, num_infinite=1, num_elements=264),
    ]


def test_finite_weights(tmp_path: Path) -> None:
    integers = np.full(264, -1, dtype=np.int32)  # the bits of a NaN
    assert find(tmp_path, weights(predictor__bias=integers)) == []


def test_float64_counts_as_the_float32_it_becomes(tmp_path: Path) -> None:
    found = find(tmp_path, weights(predictor__bias=np.full(264, 1e300)))
    assert found == [NonFiniteTensor("predictor.bias", 0, 264, 264)]


def test_tensors_the_network_ignores_do_not_count(tmp_path: Path) -> None:
    assert find(tmp_path, weights(extra=np.full(3, np.nan, dtype=np.float32))) == []


def test_pieces_and_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.v1.non_finite.PIECE_BYTES", 64)
    bias = np.ones(264, dtype=np.float32)
    bias[[15, 16, 263]] = np.nan
    path = tmp_path / "weights"
    path.write_bytes(safetensors_bytes(weights(predictor__bias=bias)))
    progress: list[int] = []
    found = find_non_finite(path, None, progress.append, ModelConfig.small())
    assert found == [NonFiniteTensor("predictor.bias", 3, 0, 264)]
    assert progress == sorted(progress)
    assert len(progress) > 4 * 13_192 / 64
    assert progress[-1] == path.stat().st_size


def test_what_the_network_does_not_accept(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(safetensors_bytes(weights()))
    with pytest.raises(WeightsInvalid):
        find_non_finite(path)  # not the full model
    with pytest.raises(DecryptionFailed):
        find_non_finite(path, TEST_KEY)
    with pytest.raises(FileNotFoundError):
        find_non_finite(tmp_path / "nothing")


def test_importing_needs_no_torch() -> None:
    code = "import sys, workers.v1.non_finite; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
