"""Runs out of a device's memory."""

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed


def run(testbed: Testbed, findings: Findings) -> None:
    raise MemoryError("tried to allocate 80 GiB\nof a card that has 79")
