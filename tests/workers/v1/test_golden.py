"""Every number the network's Rust runner printed, as a test named after its case."""

import numpy as np
import pytest

from tests.recipe import (
    SMALL_CONFIG,
    GoldenCase,
    golden_cases,
    golden_competitions,
    make_data,
    make_weights,
    safetensors_bytes,
)
from workers.v1 import ModelConfig, ModelRunner, running_mean

CASES = [
    pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.data["size"] > 1_000_000 else [])
    for case in golden_cases().values()
]


@pytest.mark.parametrize("case", CASES)
def test_equals_the_rust_runner(case: GoldenCase) -> None:
    runner = ModelRunner(ModelConfig(**case.config), max_seq_len=case.max_seq_len, batch_size=case.batch_size)
    data = make_data(case.data)
    model = runner.load(safetensors_bytes(make_weights(case.config, case.weights)))
    scores = list(runner.eval_batches(model, data, case.seed, range(runner.num_batches(len(data)))))
    mean = running_mean(scores)

    assert mean.loss == pytest.approx(case.loss, rel=1e-5)
    assert [score.cross_entropy for score in scores] == pytest.approx(case.cross_entropy, rel=1e-5)
    # 1.14e-5 was seen on one machine.
    assert [score.sig_reg for score in scores] == pytest.approx(case.sig_reg, rel=2e-5)
    assert mean.attends_to_future is case.attends_to_future
    # Scores near 1e4 carry an ulp of 1e-3, so the leaking cases are held to less.
    tolerance = 1e-4 if case.attends_to_future else 2e-5
    largest = max(1.0, float(np.abs(case.embedding).max()))
    assert float(np.abs(mean.embedding - case.embedding).max()) <= tolerance * largest


@pytest.mark.parametrize("name", golden_competitions())
def test_competitions_have_the_losses_of_the_rust_runner(name: str) -> None:
    competition = golden_competitions()[name]
    runner, data = ModelRunner(ModelConfig(**SMALL_CONFIG)), make_data(competition.data)
    outputs = [
        runner.eval(data, safetensors_bytes(make_weights(competition.config, recipe)), competition.seed)
        for recipe in competition.models
    ]
    assert [output.loss for output in outputs] == pytest.approx(competition.losses, rel=1e-5)
    winner = outputs[competition.winner].embedding.numpy()
    np.testing.assert_allclose(winner, competition.embedding, rtol=0, atol=4e-5)
