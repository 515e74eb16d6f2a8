"""Runs the steps, each in a process of its own with a time limit, until the budget of time is used up."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.gpu import findings
from benchmarks.gpu.findings import NEEDS_GPU, Row
from benchmarks.gpu.plan import Step
from benchmarks.gpu.testbed import Testbed
from workers.processes.child_process import worker_environment
from workers.types import WorkerConfig

LEAST_SECONDS = 10.0
"""A step is not begun with less left."""
ROOT = Path(__file__).parents[2]

Outcome = Literal["done", "failed", "not run"]


@dataclass(frozen=True)
class StepResult:
    """What became of a step."""

    step: Step
    outcome: Outcome
    reason: str
    """Why it is not done; empty when it is."""
    seconds: float
    rows: list[Row]


def run_steps(
    steps: Sequence[Step], testbed: Testbed, budget_seconds: float, on_begin: Callable[[Step], None]
) -> Iterator[StepResult]:
    """The result of each step, in order. Whatever one does, a crash or a hang included, the next one runs."""
    deadline = time.monotonic() + budget_seconds
    for step in steps:
        left = deadline - time.monotonic()
        if step.needs_gpu and not testbed.is_gpu:
            yield StepResult(step, "not run", NEEDS_GPU, 0.0, [])
        elif left < LEAST_SECONDS:
            yield StepResult(step, "not run", "no time left", 0.0, [])
        else:
            on_begin(step)
            yield _run(step, testbed, min(left, step.seconds))


def _run(step: Step, testbed: Testbed, limit_seconds: float) -> StepResult:
    found, log = (testbed.folder / f"{step.name.replace(' ', '-')}.{kind}" for kind in ("rows", "log"))
    found.unlink(missing_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "benchmarks.gpu.step", step.module),
                *(testbed.device, step.precision, str(testbed.folder), str(found)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=worker_environment(WorkerConfig(testbed.device)),  # numbers are those of workers
            cwd=ROOT,
            process_group=0,
        )
        code: int | None = None
        try:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(limit_seconds)
        finally:
            _end_group(process)
    rows, error = findings.read(found)
    reason = _reason(code, error, log, limit_seconds)
    seconds = time.monotonic() - began
    return StepResult(step, "failed" if reason else "done", reason, seconds, rows)


def _end_group(process: "subprocess.Popen[bytes]") -> None:
    """The step and whatever it has started and left behind."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _reason(code: int | None, error: str, log: Path, limit_seconds: float) -> str:
    if code == 0:
        return ""
    if code is None:
        return f"took longer than {limit_seconds:.0f} s"
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    return error or f"exit code {code}: {_last_line(log)}"


def _last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "nothing was printed"
