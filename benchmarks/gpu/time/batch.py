"""One batch at full size in one precision, beside float32 and beside the rate of products alone."""

import statistics

from benchmarks.gpu.clock import median_seconds, turns
from benchmarks.gpu.findings import Findings
from benchmarks.gpu.products import Kind, rate
from benchmarks.gpu.testbed import MAX_SEQ_LEN, Testbed
from benchmarks.speed import Workload, num_operations
from workers.types import Precision

LEAST_SHARE = {"float32": 0.9, "tf32": 0.7}
LEAST_SPLIT_RATIO = 2.0
KINDS: dict[Precision, list[Kind]] = {
    "float32": ["float32"],
    "float32-split": ["float32"],
    "tf32": ["tf32 NN", "tf32 NT"],
    "bf16": ["bf16"],
}
"""The products that a precision is held against: the faster of them."""


def run(testbed: Testbed, findings: Findings) -> None:
    data = testbed.data(1)
    seconds = _seconds_beside_float32(testbed, data, findings)
    num_tokens = len(data)
    findings.add(
        f"a batch, {testbed.precision}",
        f"{seconds * 1e3:.1f} ms, {num_tokens / seconds:,.0f} tokens/s",
        note=f"{testbed.batch_size} x {MAX_SEQ_LEN} tokens",
        seconds=seconds,
        tokens_per_second=num_tokens / seconds,
    )
    kinds = KINDS[testbed.precision]
    rates = {kind: rate(testbed.device, kind, testbed.case.config, num_tokens) for kind in kinds}
    if len(rates) > 1:
        ratio = rates["tf32 NT"] / rates["tf32 NN"]
        findings.add(
            "tf32, weights turned", f"{ratio:.2f} times as fast as they lie in the file", ratio=ratio
        )
    kind = max(rates, key=lambda kind: rates[kind])
    share = num_operations(Workload("", testbed.case.config, len(data))) / seconds / rates[kind]
    least = LEAST_SHARE.get(testbed.precision)
    findings.add(
        f"share of the {kind.split()[0]} rate, {testbed.precision}",
        f"{share:.2f} of {rates[kind] / 1e12:.3g} TFLOP/s",
        share >= least if least and testbed.is_gpu else None,
        note=kind,
        share=share,
        flop_per_second=rates[kind],
    )


def _seconds_beside_float32(testbed: Testbed, data: bytes, findings: Findings) -> float:
    """Of a batch in this precision; both take turns, unless they are the same."""
    runner = testbed.runner()
    model = runner.load(testbed.plain)
    if testbed.precision == "float32":
        return median_seconds(testbed.device, lambda: testbed.batch(runner, model, data))
    plain_runner = testbed.runner("float32")
    plain_model = plain_runner.load(testbed.plain)
    plain, ours = turns(
        testbed.device,
        [
            lambda: testbed.batch(plain_runner, plain_model, data),
            lambda: testbed.batch(runner, model, data),
        ],
    )
    ratio = statistics.median(a / b for a, b in zip(plain, ours, strict=True))
    findings.add(
        f"{testbed.precision} beside float32",
        f"{ratio:.2f} times as fast",
        ratio >= LEAST_SPLIT_RATIO if testbed.precision == "float32-split" else None,
        ratio=ratio,
    )
    return statistics.median(ours)
