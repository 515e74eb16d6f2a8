"""The rates of the products alone: float32, TF32 with weights as they lie and turned, bf16."""

from typing import get_args

from benchmarks.gpu.findings import NEEDS_GPU, Findings
from benchmarks.gpu.products import Kind, rate
from benchmarks.gpu.testbed import Testbed


def run(testbed: Testbed, findings: Findings) -> None:
    num_rows = 16_384 if testbed.is_gpu else 256
    found: dict[str, float] = {}
    for kind in get_args(Kind):
        name = f"rate of products, {kind}"
        if kind != "float32" and not testbed.is_gpu:
            findings.missing(name, NEEDS_GPU)
            continue
        found[kind] = rate(testbed.device, kind, testbed.case.config, num_rows)
        findings.add(name, f"{found[kind] / 1e12:.3g} TFLOP/s", flop_per_second=found[kind])
    name = "tf32, weights turned"
    if testbed.is_gpu:
        ratio = found["tf32 NT"] / found["tf32 NN"]
        findings.add(name, f"{ratio:.2f} times as fast as they lie in the file", ratio=ratio)
    else:
        findings.missing(name, NEEDS_GPU)
