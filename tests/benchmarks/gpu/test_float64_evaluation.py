"""The judge in float64 on a device says what another one, in numpy, says."""

import numpy as np
import pytest

from benchmarks.gpu import float64_evaluation
from tests.recipe import SMALL_CONFIG, SMALL_WEIGHTS, make_data, make_weights, small_weights_bytes
from tests.workers.v1 import float64_evaluation as in_numpy
from workers.v1 import ModelConfig, ModelRunner


@pytest.mark.parametrize("num_bytes", [100, 2048])
def test_it_agrees_with_numpy(num_bytes: int) -> None:
    data = make_data({"pattern": "text", "size": num_bytes})
    runner = ModelRunner(ModelConfig.small())
    exact = float64_evaluation.evaluate(runner.load(small_weights_bytes()).model, data, 1, 1024)
    loss, embedding = in_numpy.evaluate(
        make_weights(SMALL_CONFIG, SMALL_WEIGHTS),
        data,
        1,
        num_layers=2,
        num_heads=4,
        max_seq_len=1024,
        batch_size=16,
        slices=256,
    )
    # The one takes rotary angles as the network does, in float32.
    assert exact.loss == pytest.approx(loss, rel=1e-7)
    np.testing.assert_allclose(exact.embedding, embedding, rtol=0, atol=1e-6)
    assert exact.loss == pytest.approx(runner.eval(data, small_weights_bytes(), 1).loss, rel=1e-6)
    assert exact.token_cross_entropy.shape == (-(-num_bytes // 1024), 1024)
