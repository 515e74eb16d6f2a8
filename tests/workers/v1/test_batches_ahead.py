"""A GPU is handed the next batch before the numbers of one are waited for. A CPU can be told to do so too."""

from typing import Any

import pytest
import torch

from tests.recipe import make_data, small_weights_bytes
from workers.v1 import BatchScore, ModelConfig, ModelRunner
from workers.v1.batch_scorer import BatchScorer

DATA = make_data({"pattern": "text", "size": 128 * 4 * 3})
"""Three batches."""
LEAK = small_weights_bytes({"scheme": "leak", "seed": 7, "offset": 140.0})
"""Weights that the guard of the fast path refuses."""


def small_runner(num_ahead: int = 0) -> ModelRunner:
    runner = ModelRunner(ModelConfig.small(), max_seq_len=128, batch_size=4)
    runner._num_ahead = num_ahead
    return runner


def bits(score: BatchScore) -> tuple[Any, ...]:
    embedding = score.embedding.tobytes()
    return score.index, score.cross_entropy, score.sig_reg, embedding, score.attends_to_future


@pytest.fixture
def order(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is begun, in order; a test adds what it is given."""
    order: list[str] = []
    begin = BatchScorer.begin

    def noting(self: BatchScorer, *arguments: Any, **options: Any) -> Any:
        order.append("begun")
        return begin(self, *arguments, **options)

    monkeypatch.setattr(BatchScorer, "begin", noting)
    return order


@pytest.mark.parametrize(
    ("num_ahead", "expected"),
    [
        (0, "begun given begun given begun given"),
        (1, "begun begun given begun given given"),
        (5, "begun begun begun given given given"),
    ],
)
def test_that_many_are_begun_before_the_first_is_waited_for(
    num_ahead: int, expected: str, order: list[str]
) -> None:
    runner = small_runner(num_ahead)
    for _ in runner.eval_batches(runner.load(small_weights_bytes()), DATA, 0, range(3)):
        order.append("given")
    assert order == expected.split()


def test_a_cpu_gets_none_ahead() -> None:
    assert ModelRunner(ModelConfig.small())._num_ahead == 0


def test_progress_is_told_of_the_first_alone() -> None:
    """Else a batch would seem to advance that waits behind another."""
    runner, fractions = small_runner(num_ahead=1), list[float]()
    model = runner.load(small_weights_bytes())
    scores = runner.eval_batches(model, DATA, 0, range(3), on_fraction=fractions.append)
    next(scores)
    of_first = fractions.copy()
    assert of_first[-1] == pytest.approx(1)
    assert len(list(scores)) == 2
    assert fractions == of_first


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_bits_one_by_one() -> None:
    ahead, alone = (ModelRunner(ModelConfig.small(), "cuda") for _ in range(2))
    assert ahead._num_ahead == 1
    alone._num_ahead = 0
    model, data = ahead.load(small_weights_bytes()), make_data({"pattern": "text", "size": 70_000})
    expected = [bits(score) for score in alone.eval_batches(model, data, 3, range(5))]
    assert [bits(score) for score in ahead.eval_batches(model, data, 3, range(5))] == expected


@pytest.mark.parametrize(
    ("weights", "needs_reference"), [(small_weights_bytes(), False), (LEAK, True)], ids=["ordinary", "leak"]
)
def test_no_bit_depends_on_it(weights: bytes, needs_reference: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    references = 0
    begin_path = BatchScorer._begin_path

    def counting(self: BatchScorer, *arguments: Any, reference: bool) -> Any:
        nonlocal references
        references += reference
        return begin_path(self, *arguments, reference=reference)

    monkeypatch.setattr(BatchScorer, "_begin_path", counting)
    runner, ahead = small_runner(), small_runner(num_ahead=1)
    model = runner.load(weights)
    expected = [bits(score) for score in runner.eval_batches(model, DATA, 3, range(3))]
    assert (references > 0) is needs_reference
    assert [bits(score) for score in ahead.eval_batches(model, DATA, 3, range(3))] == expected
    pieces = [DATA[start : start + 50 * start] for start in range(1, 10)]
    expected = [bits(score) for score in runner.eval_pieces(model, pieces, 3)]
    assert [bits(score) for score in ahead.eval_pieces(model, pieces, 3)] == expected
