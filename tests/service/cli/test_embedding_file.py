"""The file of `score --embedding-out`: exact numbers there and back, and nothing else is taken for one."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.checksum import checksum_of
from service.cli.embedding_file import (
    EmbeddingFile,
    float32_numbers,
    is_embedding_file,
    read_embedding_file,
    write_embedding_file,
)
from service.cli.usage import BadUsage

CONTENT = EmbeddingFile(
    weights="a.safetensors",
    checksum=checksum_of(b"weights"),
    embedding=np.array([0.1, -1.5e-38, 3.0, 16777217.0], dtype=np.float32),
    data_checksum=checksum_of(b"data"),
    data_size=4,
    seed=2**64 - 1,
    loss=5.5,
    architecture_version="1",
    small_model=True,
    architecture="small",
    precision="float32",
    device="cpu",
    versions={"torch": "2"},
    computed_at="2026-01-01T00:00:00Z",
)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "embedding.json"
    write_embedding_file(path, CONTENT)
    read = read_embedding_file(path)
    assert read.embedding.dtype == np.float32
    assert read.embedding.tolist() == CONTENT.embedding.tolist()
    assert replace(read, embedding=CONTENT.embedding) == CONTENT
    assert is_embedding_file(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["embedding.json"]


def test_numbers_are_short_and_exact() -> None:
    bits = np.random.default_rng(0).integers(0, 2**32, 20_000, dtype=np.uint32)
    numbers = bits.view(np.float32)
    numbers = numbers[np.isfinite(numbers)]
    written = json.loads(json.dumps(float32_numbers(numbers)))
    assert np.array(written, dtype=np.float64).astype(np.float32).tobytes() == numbers.tobytes()
    assert json.dumps(float32_numbers(np.array([0.1], dtype=np.float32))) == "[0.1]"


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("checksum", "x"),
        ("checksum", None),
        ("data_checksum", 3),
        ("embedding", []),
        ("embedding", [0.0, 0.0]),
        ("embedding", [1e300]),
        ("embedding", [10**400]),
        ("embedding", ["1"]),
        ("embedding", [True]),
        ("embedding", {"a": 1}),
        ("seed", -1),
        ("seed", True),
        ("data_size", 0),
        ("loss", "5"),
        ("loss", 10**400),
        ("versions", [1]),
        ("small_model", 1),
    ],
    ids=str,
)
def test_a_member_that_was_changed_is_named(tmp_path: Path, member: str, value: Any) -> None:
    path = tmp_path / "embedding.json"
    write_embedding_file(path, CONTENT)
    path.write_text(json.dumps(json.loads(path.read_text()) | {member: value}))
    with pytest.raises(BadUsage, match="was changed since"):
        read_embedding_file(path)


@pytest.mark.parametrize("text", ["", "[1, 2]", "null", "{", "{}", '{"format": "x"}', "[" * 100_000, "\xff"])
def test_other_files_are_not_taken_for_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other"
    path.write_text(text, encoding="latin-1")
    assert not is_embedding_file(path)
    with pytest.raises(BadUsage, match="is not a file that `soma-eval score --embedding-out` wrote"):
        read_embedding_file(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_embedding_file(tmp_path / "nowhere")
