"""Every golden case of the tests on the device: loss, embedding and the flag, in one precision."""

from collections.abc import Iterator

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed
from benchmarks.gpu.tolerances import TOLERANCES, Deviation, deviation
from tests.recipe import (
    SMALL_CONFIG,
    GoldenCase,
    golden_cases,
    golden_competitions,
    make_data,
    make_weights,
    safetensors_bytes,
)
from workers.types import Precision
from workers.v1 import MeanScore, ModelConfig, ModelRunner, running_mean

MAX_BYTES_ON_CPU = 1_500
"""Of data: a CPU leaves the longer cases to the tests, which hold them all."""


def run(testbed: Testbed, findings: Findings) -> None:
    precision = testbed.precision
    found, errors = {}, []
    for case in _cases(testbed):
        try:
            found[case.name] = deviation(case, evaluate(case, testbed.device, precision), precision)
        except Exception as error:  # one case that cannot be computed hides no other
            errors.append(f"{case.name}: {type(error).__name__}")
        print(case.name, found.get(case.name), flush=True)
    bad = [name for name, each in found.items() if not (each.is_allowed and each.has_flag)]
    loss, embedding = _worst(found, "loss"), _worst(found, "embedding")
    num_right, num_cases = len(found) - len(bad), len(found) + len(errors)
    findings.add(
        f"golden cases, {precision}",
        f"{num_right} of {num_cases}; worst loss {loss[0]:.1e} ({loss[1]}), "
        f"embedding {embedding[0]:.1e} ({embedding[1]})",
        holds=not bad and not errors,
        note=f"not right: {', '.join([*bad, *errors])}" if bad or errors else "",
        num_right=num_right,
        num_cases=num_cases,
        worst_loss_relative=loss[0],
        worst_embedding=embedding[0],
    )
    worst = max(_competition_losses(testbed.device, precision), default=0.0)
    findings.add(
        f"golden competitions, {precision}",
        f"worst loss {worst:.1e}",
        worst <= TOLERANCES[precision].loss,
        worst_loss_relative=worst,
    )


def evaluate(case: GoldenCase, device: str, precision: Precision) -> MeanScore:
    """The case's result on the device."""
    runner = ModelRunner(
        ModelConfig(**case.config),
        device,
        precision,
        max_seq_len=case.max_seq_len,
        batch_size=case.batch_size,
    )
    model = runner.load(safetensors_bytes(make_weights(case.config, case.weights)))
    data = make_data(case.data)
    return running_mean(runner.eval_batches(model, data, case.seed, range(runner.num_batches(len(data)))))


def _cases(testbed: Testbed) -> list[GoldenCase]:
    cases = golden_cases().values()
    return [case for case in cases if testbed.is_gpu or case.data["size"] <= MAX_BYTES_ON_CPU]


def _worst(found: dict[str, Deviation], kind: str) -> tuple[float, str]:
    return max(((float(getattr(each, kind)), name) for name, each in found.items()), default=(0.0, "none"))


def _competition_losses(device: str, precision: Precision) -> Iterator[float]:
    """How far each loss of each competition is off, relative."""
    runner = ModelRunner(ModelConfig(**SMALL_CONFIG), device, precision)
    for competition in golden_competitions().values():
        data = make_data(competition.data)
        for recipe, expected in zip(competition.models, competition.losses, strict=True):
            weights = safetensors_bytes(make_weights(competition.config, recipe))
            yield abs(runner.eval(data, weights, competition.seed).loss - expected) / abs(expected)
