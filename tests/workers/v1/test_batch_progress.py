"""The fraction of a batch that is done: it rises to 1, and nobody's numbers depend on who asks."""

from collections.abc import Callable

import pytest

from tests.recipe import make_data, small_weights_bytes
from workers.v1 import ModelConfig, ModelRunner


@pytest.mark.parametrize("micro_batch_size", [None, 1, 3])
def test_it_rises_to_1_and_changes_no_bit(
    micro_batch_size: int | None, set_num_threads: Callable[[int], None]
) -> None:
    """One thread tells of each step itself; several tell the one that waits, which may look up only at the end."""
    set_num_threads(1)
    runner = ModelRunner(
        ModelConfig.small(), max_seq_len=128, batch_size=4, micro_batch_size=micro_batch_size
    )
    data = make_data({"pattern": "text", "size": 128 * 6})
    model = runner.load(small_weights_bytes())
    fractions: list[float] = []
    of_batches = []
    scores = []
    for score in runner.eval_batches(model, data, 0, range(2), on_fraction=fractions.append):
        scores.append(score)
        of_batches.append(fractions.copy())
        fractions.clear()
    for of_one in of_batches:
        assert of_one == sorted(of_one)
        assert 0 < of_one[0] < 1
        assert of_one[-1] == pytest.approx(1)
    silent = list(runner.eval_batches(model, data, 0, range(2)))
    for one, other in zip(scores, silent, strict=True):
        assert (one.cross_entropy, one.sig_reg) == (other.cross_entropy, other.sig_reg)
        assert one.embedding.tobytes() == other.embedding.tobytes()
