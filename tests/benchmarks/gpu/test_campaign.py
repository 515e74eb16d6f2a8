"""A campaign goes on whatever a step does, and says what it was."""

import time
from pathlib import Path

import pytest

from benchmarks.gpu.campaign import StepResult, run_steps
from benchmarks.gpu.findings import NEEDS_GPU, Row
from benchmarks.gpu.plan import Goal, Step
from benchmarks.gpu.report import INCOMPLETE, WRONG, document, exit_code, lines_of
from benchmarks.gpu.testbed import Testbed


def step(name: str, seconds: float = 60, needs_gpu: bool = False, *goals: Goal) -> Step:
    return Step("numbers", name, f"tests.benchmarks.gpu.steps.{name}", seconds, "float32", needs_gpu, goals)


def run(folder: Path, *steps: Step, budget_seconds: float = 120) -> list[StepResult]:
    return list(run_steps(steps, Testbed("cpu", folder), budget_seconds, lambda step: None))


def test_what_one_step_does_keeps_no_other_from_running(tmp_path: Path) -> None:
    crashes, raises, finds = run(tmp_path, step("crashes"), step("raises"), step("finds"))
    assert (crashes.outcome, crashes.reason) == ("failed", "ended by SIGKILL")
    assert [row.name for row in crashes.rows] == ["before"]  # what was found stays found
    assert (raises.outcome, raises.reason) == (
        "failed",
        "MemoryError: tried to allocate 80 GiB ... of a card that has 79",
    )
    assert (finds.outcome, finds.reason) == ("done", "")
    assert finds.rows == [Row("answer", "42", {"answer": 42.0}, holds=True)]
    assert exit_code([crashes, raises, finds]) == INCOMPLETE


def test_a_step_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    (result,) = run(tmp_path, step("hangs", 5))
    assert (result.outcome, result.reason) == ("failed", "took longer than 5 s")
    child = Path(f"/proc/{result.rows[0].numbers['child']:.0f}/stat")
    deadline = time.monotonic() + 20
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_step_that_cannot_be_started_is_a_row(tmp_path: Path) -> None:
    (result,) = run(tmp_path, step("nowhere"))
    assert result.reason == "ModuleNotFoundError: No module named 'tests.benchmarks.gpu.steps.nowhere'"
    (line,) = lines_of([result])
    assert (line.row.name, line.verdict, line.row.missing) == ("nowhere", "not measured", result.reason)


def test_what_has_no_gpu_or_no_time_is_neither_run_nor_wrong(tmp_path: Path) -> None:
    goal = Goal("answer", "42")
    no_gpu, no_time = run(tmp_path, step("finds", 60, True, goal), step("finds"), budget_seconds=0)
    assert (no_gpu.outcome, no_gpu.reason) == ("not run", NEEDS_GPU)
    assert (no_time.outcome, no_time.reason) == ("not run", "no time left")
    assert exit_code([no_gpu, no_time]) == 0
    (line,) = lines_of([no_gpu])
    assert (line.row.name, line.goal, line.verdict) == ("answer", goal, "not measured")


@pytest.mark.parametrize(
    ("holds", "must_hold", "expected"), [(True, True, 0), (False, True, WRONG), (False, False, 0)]
)
def test_only_what_must_hold_is_wrong(holds: bool, must_hold: bool, expected: int) -> None:
    goal = Goal("answer", "42", must_hold)
    result = StepResult(step("finds", 60, False, goal), "done", "", 1.0, [Row("answer", "41", {}, holds)])
    assert exit_code([result]) == expected
    assert lines_of([result])[0].verdict == ("pass" if holds else "fail")


def test_a_goal_without_a_row_is_said_to_be_not_measured() -> None:
    goal = Goal("answer", "42")
    failed = StepResult(step("finds", 60, False, goal), "failed", "ended by SIGSEGV", 1.0, [])
    found = document([failed], device="cuda")
    assert found["device"] == "cuda"
    assert found["exit_code"] == INCOMPLETE
    (row,) = found["rows"]
    assert (row["name"], row["goal"], row["verdict"]) == ("answer", "42", "not measured")
    assert row["missing"] == "ended by SIGSEGV"
