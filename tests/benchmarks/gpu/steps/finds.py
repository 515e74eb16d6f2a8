"""Finds a number that is right."""

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed


def run(testbed: Testbed, findings: Findings) -> None:
    findings.add("answer", "42", True, answer=42.0)
