"""The published package, soma-models, on the same device with the same weights and bytes; both take turns."""

import statistics
from importlib.util import find_spec

from benchmarks.gpu.clock import seconds_of, turns
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed
from benchmarks.speed_peer import soma_models

NAMES = ("load, soma-models", "soma-eval beside soma-models")


def run(testbed: Testbed, findings: Findings) -> None:
    if find_spec("soma_models") is None:
        for name in NAMES:
            findings.missing(name, "soma-models is not installed")
        return
    data = testbed.data(1)
    load = soma_models(testbed.case.config, testbed.device, testbed.precision)
    models = []
    seconds = seconds_of(testbed.device, lambda: models.append(load(str(testbed.plain), None)))
    findings.add(NAMES[0], f"{seconds:.2f} s", seconds=seconds)
    runner = testbed.runner()
    model = runner.load(testbed.plain)
    theirs, ours = turns(
        testbed.device,
        [lambda: models[0](data), lambda: testbed.batch(runner, model, data)],
        rounds=3 if testbed.is_gpu else 1,
    )
    ratio = statistics.median(a / b for a, b in zip(theirs, ours, strict=True))
    findings.add(
        NAMES[1],
        f"{ratio:.2f} times as fast, {statistics.median(ours) * 1e3:.1f} and {statistics.median(theirs) * 1e3:.1f} ms",
        ratio=ratio,
        seconds=statistics.median(ours),
        soma_models_seconds=statistics.median(theirs),
    )
