"""Benchmarks that take a device and a precision refuse what the machine does not have, with one line."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["speed", "full_size", "pool_scaling"])
def test_a_precision_that_a_cpu_does_not_have_is_refused(name: str) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--precision", "bf16"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert "precision bf16 needs a GPU" in ran.stderr
