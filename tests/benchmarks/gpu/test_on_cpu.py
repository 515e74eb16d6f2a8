"""The whole campaign, in the mode that needs no GPU."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.findings import NEEDS_GPU
from benchmarks.gpu.plan import PARTS, STEPS

ROOT = Path(__file__).parents[3]

RIGHT: dict[tuple[str, str], Callable[[dict[str, float]], bool]] = {
    ("numbers", "golden cases, float32"): lambda found: found["num_right"] == found["num_cases"] >= 10,
    ("numbers", "error against float64, float32"): lambda found: 0 < found["token_nats_rms"] < 1e-5,
    ("numbers", "attention, as it runs"): lambda found: 0 < found["rms"] < 1e-5,
    ("time", "a batch, float32"): lambda found: found["seconds"] > 0,
    ("time", "load, encrypted"): lambda found: found["bytes_per_second"] > 0,
    ("service", "second /eval of encrypted weights"): lambda found: found["load_seconds"] == 0,
}
"""What numbers of a row must be, by part and name."""


def campaign(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(900)  # a busy machine starts 20 processes with torch slowly
@pytest.mark.parametrize("part", PARTS)
def test_every_step_runs_and_every_goal_has_its_row(part: str, tmp_path: Path) -> None:
    found_file, folder = tmp_path / "found.json", tmp_path / "work"
    ran = campaign(part, "--device", "cpu", "--json", str(found_file), "--folder", str(folder))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads(found_file.read_text())
    assert (found["device"], found["exit_code"]) == ("cpu", 0)
    steps = [step for step in STEPS if step.part in ("setup", part)]
    expected = {step.name: ("not run", NEEDS_GPU) if step.needs_gpu else ("done", "") for step in steps}
    assert {step["name"]: (step["outcome"], step["reason"]) for step in found["steps"]} == expected
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in found["rows"]}
    for step in steps:
        for goal in step.goals:
            row = rows[goal.row]
            assert row["goal"] == goal.text
            if step.needs_gpu:
                assert row["missing"] == NEEDS_GPU
            elif goal.must_hold:
                assert row["verdict"] == "pass" or row["missing"] == NEEDS_GPU, row
    for (part_of_row, name), is_right in RIGHT.items():
        if part_of_row == part:
            assert is_right(rows[name]["numbers"]), rows[name]
    assert f"{part} on cpu" in ran.stdout


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    ran = campaign("numbers")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == (
        "benchmarks.gpu: torch sees no GPU here; --device cpu runs the small model on the CPU\n"
    )


@pytest.mark.slow
def test_a_campaign_that_is_ended_leaves_no_step_behind(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    command = [sys.executable, "-m", "benchmarks.gpu", "numbers", "--device", "cpu", "--folder", str(folder)]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        assert "numbers: golden float32\n" in iter(process.stderr.readline, "")
        while not list(steps_in(folder)):
            time.sleep(0.01)
        process.terminate()
        table, _ = process.communicate()
    assert process.returncode == 143
    assert "import torch" in table  # what was found until then
    assert not list(steps_in(folder))


def steps_in(folder: Path) -> Iterator[Path]:
    """Processes of steps of the campaign in this folder."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            command = path.read_bytes()
            if b"benchmarks.gpu.step" in command and str(folder).encode() in command:
                yield path
