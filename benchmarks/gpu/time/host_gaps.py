"""What the card waits for: its idle time between the kernels of several batches, as the profiler has it."""

from collections.abc import Iterable

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import SEED, Testbed

NUM_BATCHES = 4
MOST_GAP_SECONDS = 1e-3

Span = tuple[float, float]
"""Begin and end of a kernel."""


def run(testbed: Testbed, findings: Findings) -> None:
    from torch.profiler import ProfilerActivity, profile

    runner = testbed.runner()
    model, data = runner.load(testbed.plain), testbed.data(NUM_BATCHES)
    testbed.batch(runner, model, data)
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        list(runner.eval_batches(model, data, SEED, range(NUM_BATCHES)))
    spans = [
        (event.time_range.start / 1e6, event.time_range.end / 1e6)
        for event in found.events()
        if "CUDA" in str(event.device_type)
    ]
    if not spans:
        raise RuntimeError("the profiler saw no kernel")
    gaps = idle_gaps(spans)
    total = max(end for _, end in spans) - min(begin for begin, _ in spans)
    idle = sum(gaps) / total
    longest = max(gaps, default=0.0)
    findings.add(
        f"idle between {NUM_BATCHES} batches, {testbed.precision}",
        f"longest gap {longest * 1e3:.2f} ms, {idle:.1%} of {total:.2f} s idle",
        longest <= MOST_GAP_SECONDS,
        note=f"{len(spans):,} kernels and copies",
        longest_gap_seconds=longest,
        idle_share=idle,
        num_kernels=len(spans),
    )


def idle_gaps(spans: Iterable[Span]) -> list[float]:
    """How long nothing ran, each time, between the first span's begin and the last one's end."""
    gaps: list[float] = []
    busy_until: float | None = None
    for begin, end in sorted(spans):
        if busy_until is not None and begin > busy_until:
            gaps.append(begin - busy_until)
        busy_until = end if busy_until is None else max(busy_until, end)
    return gaps
