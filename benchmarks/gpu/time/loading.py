"""From the page cache to the device: plain, encrypted and F16 weights, beside what the bus does with pinned memory."""

from pathlib import Path

import torch

from benchmarks.gpu.clock import median_seconds, seconds_of
from benchmarks.gpu.findings import NEEDS_GPU, Findings
from benchmarks.gpu.testbed import Testbed
from tests.recipe import TEST_KEY

ROUNDS = 3
BUS_PIECE_BYTES, BUS_PIECES = 64 << 20, 16
MOST_TIMES_THE_BUS = 2.0


def run(testbed: Testbed, findings: Findings) -> None:
    bus = _bus_rate(testbed, findings)
    rates: dict[str, float] = {}
    for name, path, key in (
        ("plain", testbed.plain, None),
        ("encrypted", testbed.encrypted, TEST_KEY),
        ("F16", testbed.float16, None),
    ):
        seconds = _load_seconds(testbed, path, key)
        rates[name] = path.stat().st_size / seconds
        findings.add(
            f"load, {name}",
            f"{seconds:.3f} s, {rates[name] / 1e9:.3g} GB/s of the file",
            seconds=seconds,
            bytes_per_second=rates[name],
        )
    if bus is None:
        findings.missing("a plain load beside the bus", NEEDS_GPU)
        return
    times = bus / rates["plain"]
    findings.add(
        "a plain load beside the bus", f"{times:.2f} times as long", times <= MOST_TIMES_THE_BUS, times=times
    )


def _bus_rate(testbed: Testbed, findings: Findings) -> float | None:
    """Bytes a second from pinned memory to the card."""
    if not testbed.is_gpu:
        findings.missing("bus, pinned memory to the card", NEEDS_GPU)
        return None
    host = torch.empty(BUS_PIECE_BYTES, dtype=torch.uint8, pin_memory=True)
    card = torch.empty(BUS_PIECE_BYTES, dtype=torch.uint8, device=testbed.device)
    seconds = median_seconds(testbed.device, lambda: card.copy_(host, non_blocking=True), inner=BUS_PIECES)
    findings.add(
        "bus, pinned memory to the card",
        f"{BUS_PIECE_BYTES / seconds / 1e9:.1f} GB/s",
        bytes_per_second=BUS_PIECE_BYTES / seconds,
    )
    return BUS_PIECE_BYTES / seconds


def _load_seconds(testbed: Testbed, path: Path, key: bytes | None) -> float:
    """The best of some rounds behind a first one, which brings the file into the page cache."""
    runner = testbed.runner("float32")
    found = [seconds_of(testbed.device, lambda: runner.load(path, key)) for _ in range(ROUNDS + 1)]
    return min(found[1:])
