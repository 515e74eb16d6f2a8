"""Bytes to sequences, noise, and the fold of batches: what needs no torch."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from soma_models.v1 import tokenizer as published

from tests.recipe import make_data
from workers.architectures import UnknownArchitecture, load_architecture
from workers.v1 import (
    BatchScore,
    EmptyData,
    ModelConfig,
    NonFiniteResult,
    num_batches,
    num_sequences,
    running_mean,
    tokenize,
)
from workers.v1.noise import batch_noise
from workers.v1.tokenizer import tokenize_range


@given(st.binary(max_size=70), st.integers(1, 20))
def test_tokenize_equals_the_published_tokenizer(data: bytes, max_seq_len: int) -> None:
    assert [tuple(s) for s in tokenize(data, max_seq_len)] == [
        tuple(s) for s in published.tokenize(data, max_seq_len)
    ]


@given(st.binary(max_size=70), st.integers(1, 20), st.integers(1, 5))
def test_batches_are_the_sequences_in_order(data: bytes, max_seq_len: int, batch_size: int) -> None:
    sequences = tokenize(data, max_seq_len)
    batches = tokenize(data, max_seq_len, batch_size)
    assert [rows for batch in batches for rows in zip(*batch, strict=True)] == [tuple(s) for s in sequences]
    assert all(len(batch.token_ids) == batch_size for batch in batches[:-1])


def test_sizes_below_1() -> None:
    for sizes in (0, 1), (1, 0), (-1, 1):
        with pytest.raises(ValueError, match="at least 1"):
            tokenize(b"x", *sizes)


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 2049])
def test_tokenize_at_the_network_s_length(size: int) -> None:
    data = make_data({"pattern": "hash", "size": size, "seed": 0})
    assert [tuple(s) for s in tokenize(data)] == [tuple(s) for s in published.tokenize(data)]


@given(st.binary(min_size=1, max_size=70), st.integers(1, 20), st.data())
def test_a_range_is_a_slice_of_the_whole(data: bytes, max_seq_len: int, draw: st.DataObject) -> None:
    whole = tokenize(data, max_seq_len)
    start = draw.draw(st.integers(0, len(whole) - 1))
    stop = draw.draw(st.integers(start + 1, len(whole)))
    batch = tokenize_range(data, range(start, stop), max_seq_len)
    assert batch.token_ids.tolist() == [s.token_ids for s in whole[start:stop]]
    assert batch.targets.tolist() == [s.targets for s in whole[start:stop]]
    assert batch.pos_ids.tolist() == [s.pos_ids for s in whole[start:stop]]


@pytest.mark.parametrize(
    ("size", "sequences", "batches"),
    [(0, 0, 0), (1, 1, 1), (1024, 1, 1), (1025, 2, 1), (16_384, 16, 1), (16_385, 17, 2), (2**20, 1024, 64)],
)
def test_counts(size: int, sequences: int, batches: int) -> None:
    assert (num_sequences(size), num_batches(size)) == (sequences, batches)


def test_the_seed_of_a_batch_wraps_at_64_bits() -> None:
    assert np.array_equal(batch_noise(2**64 - 1, 3, 4), batch_noise(0, 2, 4))
    assert batch_noise(0, 0, 4).shape == (4, 256)


def score(index: int, cross_entropy: float, embedding: float = 0.0, leak: bool = False) -> BatchScore:
    return BatchScore(index, cross_entropy, 1.0, np.full(2, embedding, dtype=np.float32), leak)


def test_every_batch_weighs_the_same_in_any_order() -> None:
    mean = running_mean([score(2, 6.0, 9.0), score(0, 1.0, 3.0), score(1, 2.0, 0.0, leak=True)])
    assert mean.cross_entropy == 3.0
    assert mean.sig_reg == 1.0
    assert mean.loss == pytest.approx(3.02)
    assert mean.embedding.tolist() == [4.0, 4.0]
    assert mean.attends_to_future


def test_the_fold_is_float32_in_batch_order() -> None:
    scores = [score(i, value) for i, value in enumerate([0.1, 0.7, 0.3])]
    expected = np.float32(0)
    for n, one in enumerate(scores, start=1):
        expected += (np.float32(one.cross_entropy) - expected) / np.float32(n)
    assert running_mean(reversed(scores)).cross_entropy == float(expected)


def test_no_batches() -> None:
    with pytest.raises(EmptyData):
        running_mean([])


@pytest.mark.parametrize("indices", [[0, 2], [1], [0, 0]])
def test_missing_and_repeated_batches(indices: list[int]) -> None:
    with pytest.raises(ValueError, match="each once"):
        running_mean([score(i, 1.0) for i in indices])


@pytest.mark.parametrize("bad", [score(1, np.nan), score(1, np.inf), score(1, 1.0, np.nan), score(1, 1e39)])
def test_only_finite_results(bad: BatchScore) -> None:
    with pytest.raises(NonFiniteResult):
        running_mean([score(0, 1.0), bad])


@pytest.mark.parametrize(
    "change",
    [
        {"num_heads": 3},
        {"embedding_dim": 12, "num_heads": 4},
        {"num_layers": 0},
        {"vocab_size": 257},
        {"scale_factor": 0.5},
        {"dropout_rate": 1.0},
    ],
)
def test_shapes_that_make_no_model(change: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        ModelConfig(**change)


@pytest.mark.slow
def test_importing_needs_no_torch() -> None:
    code = (
        "import sys, workers.architectures as a; v1 = a.load_architecture('1');"
        "import workers.v1.weights_header, workers.v1.running_mean, workers.v1.noise;"
        "v1.tokenize(b'x'); v1.ModelConfig.small(); assert 'Model' in dir(v1);"
        "assert 'torch' not in sys.modules; v1.ModelRunner; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_are_complete() -> None:
    v1: Any = load_architecture("1")
    assert all(hasattr(v1, name) for name in v1.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        v1.nothing  # noqa: B018


def test_unknown_architecture() -> None:
    with pytest.raises(UnknownArchitecture, match="'2' is unknown; known: 1"):
        load_architecture("2")
