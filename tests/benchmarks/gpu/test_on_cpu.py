"""The whole campaign, in the mode that needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.findings import NEEDS_GPU
from benchmarks.gpu.plan import STEPS

ROOT = Path(__file__).parents[3]


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
def test_every_step_runs_and_every_goal_has_its_row(tmp_path: Path) -> None:
    ran = campaign(
        "--device", "cpu", "--json", str(tmp_path / "found.json"), "--folder", str(tmp_path / "work")
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["device"], found["exit_code"]) == ("cpu", 0)
    expected = {step.name: ("not run", NEEDS_GPU) if step.needs_gpu else ("done", "") for step in STEPS}
    assert {step["name"]: (step["outcome"], step["reason"]) for step in found["steps"]} == expected
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in found["rows"]}
    for step in STEPS:
        for goal in step.goals:
            row = rows[goal.row]
            assert row["goal"] == goal.text
            if step.needs_gpu:
                assert row["missing"] == NEEDS_GPU
            elif goal.must_hold:
                assert row["verdict"] == "pass" or row["missing"] == NEEDS_GPU, row
    assert rows["golden cases, float32"]["numbers"]["num_right"] >= 10
    assert 0 < rows["error against float64, float32"]["numbers"]["token_nats_rms"] < 1e-5
    assert rows["a batch, float32"]["numbers"]["seconds"] > 0
    assert "golden cases, float32" in ran.stdout


def test_without_a_gpu_it_says_so_in_one_line() -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a GPU")
    ran = campaign("numbers")
    assert ran.returncode == 2
    assert ran.stdout == ""
    assert ran.stderr == (
        "benchmarks.gpu: torch sees no GPU here; --device cpu runs the small model on the CPU\n"
    )
