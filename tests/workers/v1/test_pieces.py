"""Pieces that share a forward pass have the numbers that each has alone."""

import math
from collections.abc import Callable, Iterator

import pytest

from tests.recipe import make_data, small_weights_bytes
from workers.v1 import BatchScore, EmptyData, ModelConfig, ModelRunner
from workers.v1.model_runner import _passes

SIZES = [100, 1, 128, 300, 127, 129, 256, 1000, 64]
PIECES = [make_data({"pattern": "hash", "size": size, "seed": size}) for size in SIZES]


@pytest.fixture(scope="module")
def runner() -> ModelRunner:
    return ModelRunner(ModelConfig.small(), max_seq_len=128, micro_batch_size=4)


def alone(runner: ModelRunner, weights: bytes, seed: int) -> Iterator[BatchScore]:
    model = runner.load(weights)
    for piece in PIECES:
        yield from runner.eval_batches(model, piece, seed, range(1))


def assert_same(found: BatchScore, expected: BatchScore) -> None:
    assert found.cross_entropy == expected.cross_entropy
    assert found.sig_reg == expected.sig_reg
    assert found.embedding.tobytes() == expected.embedding.tobytes()
    assert found.attends_to_future == expected.attends_to_future


@pytest.mark.parametrize("seed", [0, 2**64 - 1])
def test_each_has_its_own_numbers(runner: ModelRunner, seed: int) -> None:
    weights = small_weights_bytes()
    scores = list(runner.eval_pieces(runner.load(weights), PIECES, seed))
    assert [score.index for score in scores] == list(range(len(PIECES)))
    for found, expected in zip(scores, alone(runner, weights, seed), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("offset", [100.0, 140.0, 160.0])
def test_only_pieces_that_attend_to_the_future_say_so(runner: ModelRunner, offset: float) -> None:
    """Of weights near the border of the guard, every piece has the verdict that it has alone."""
    weights = small_weights_bytes({"scheme": "leak", "seed": 7, "offset": offset})
    scores = runner.eval_pieces(runner.load(weights), PIECES, 3)
    for found, expected in zip(scores, alone(runner, weights, 3), strict=True):
        assert found.attends_to_future == expected.attends_to_future
        assert found.cross_entropy == pytest.approx(expected.cross_entropy, rel=1e-5)


def test_what_is_not_finite_stays_with_its_piece(runner: ModelRunner) -> None:
    """A byte whose embedding is infinite stands in one piece alone."""
    model = runner.load(small_weights_bytes())
    model.model.embedding.weight[7] = math.inf
    pieces = [b"\x07 and more", b"without it"]
    bad, good = runner.eval_pieces(model, pieces, 0)
    assert not math.isfinite(bad.cross_entropy)
    (expected,) = runner.eval_batches(model, pieces[1], 0, range(1))
    assert (good.cross_entropy, good.sig_reg) == (expected.cross_entropy, expected.sig_reg)


def test_passes_hold_as_many_as_fit() -> None:
    assert list(_passes([1, 1, 2, 3, 9, 1], 4)) == [range(3), range(3, 4), range(4, 5), range(5, 6)]
    assert list(_passes([], 4)) == []


def test_larger_models_take_as_many_at_once_as_keep_the_threads_busy(
    set_num_threads: Callable[[int], None],
) -> None:
    set_num_threads(1)
    assert ModelRunner(ModelConfig.small())._scorer.pieces_at_once() == 16
    assert ModelRunner(ModelConfig(512, 2048, 24))._scorer.pieces_at_once() == 4
    assert ModelRunner()._scorer.pieces_at_once() == 1
    set_num_threads(9)
    assert ModelRunner()._scorer.pieces_at_once() == 3
    assert ModelRunner(micro_batch_size=1)._scorer.pieces_at_once() == 1


def test_refuses_what_is_no_piece(runner: ModelRunner) -> None:
    model = runner.load(small_weights_bytes())
    with pytest.raises(EmptyData):
        list(runner.eval_pieces(model, [b"some", b""], 0))
    with pytest.raises(ValueError, match="one batch at most"):
        list(runner.eval_pieces(model, [bytes(128 * 16 + 1)], 0))
    with pytest.raises(ValueError, match="seed"):
        list(runner.eval_pieces(model, [b"some"], -1))
