"""Hangs, and has a child that would outlive it."""

import subprocess
import sys
import time

from benchmarks.gpu.findings import Findings
from benchmarks.gpu.testbed import Testbed


def run(testbed: Testbed, findings: Findings) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    findings.add("child", str(child.pid), child=child.pid)
    time.sleep(60)
