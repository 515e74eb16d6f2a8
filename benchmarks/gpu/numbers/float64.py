"""float64 on the device as judge: how far each precision is from the truth on one whole batch at full size."""

from typing import get_args

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu import float64_evaluation
from benchmarks.gpu.findings import NEEDS_GPU, Findings
from benchmarks.gpu.testbed import SEED, Testbed
from workers.types import Precision
from workers.v1 import BatchScore


def run(testbed: Testbed, findings: Findings) -> None:
    data = testbed.data(1)
    runner = testbed.runner("float32")
    exact = float64_evaluation.evaluate(runner.load(testbed.plain).model, data, SEED, runner.max_seq_len)
    findings.add("loss in float64", f"{exact.loss:.9f}", loss=exact.loss)
    scores: dict[Precision, BatchScore] = {}
    rms: dict[Precision, float] = {}
    for precision in get_args(Precision):
        name = f"error against float64, {precision}"
        if precision != "float32" and not testbed.is_gpu:
            findings.missing(name, NEEDS_GPU)
            continue
        runner = testbed.runner(precision)
        (score,) = runner.eval_batches(runner.load(testbed.plain), data, SEED, range(1), detail=True)
        assert score.token_cross_entropy is not None
        scores[precision] = score
        rms[precision], most = _rms_and_max(score.token_cross_entropy - exact.token_cross_entropy)
        embedding_rms, embedding_most = _rms_and_max(score.embedding - exact.embedding)
        loss = abs(_loss(score) - exact.loss) / exact.loss
        findings.add(
            name,
            f"a token's nats rms {rms[precision]:.1e}, max {most:.1e}; loss {loss:.1e}",
            holds=rms[precision] <= rms["float32"] if precision == "float32-split" else None,
            note=f"embedding rms {embedding_rms:.1e}, max {embedding_most:.1e}",
            token_nats_rms=rms[precision],
            token_nats_max=most,
            loss_relative=loss,
            embedding_rms=embedding_rms,
            embedding_max=embedding_most,
        )
    _split_beside_float32(scores, findings)


def _split_beside_float32(scores: dict[Precision, BatchScore], findings: Findings) -> None:
    name = "float32-split beside float32"
    if "float32-split" not in scores:
        findings.missing(name, NEEDS_GPU)
        return
    split, plain = scores["float32-split"], scores["float32"]
    loss = abs(_loss(split) - _loss(plain)) / _loss(plain)
    most = float(np.abs(split.embedding - plain.embedding).max())
    findings.add(name, f"loss {loss:.1e}, embedding {most:.1e}", loss_relative=loss, embedding_max=most)


def _loss(score: BatchScore) -> float:
    return score.cross_entropy + 0.02 * score.sig_reg


def _rms_and_max(error: NDArray[np.float64]) -> tuple[float, float]:
    return float(np.sqrt(np.mean(np.square(error)))), float(np.abs(error).max())
