"""Finds something and is then killed, as by the kernel's lack of memory."""

import os
import signal

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed


def run(testbed: Testbed, findings: Findings) -> None:
    findings.add("before", "found", True)
    os.kill(os.getpid(), signal.SIGKILL)
