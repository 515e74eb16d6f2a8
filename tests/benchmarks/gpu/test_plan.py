"""Every step can be run, and every goal is one row's."""

import importlib
from collections import Counter
from typing import get_args

from benchmarks.gpu.plan import PARTS, STEPS
from benchmarks.gpu.tolerances import TOLERANCES
from workers.types import Precision


def test_every_step_has_a_module_and_a_part() -> None:
    for step in STEPS:
        assert callable(importlib.import_module(step.module).run), step.name
        assert step.part in ("setup", *PARTS)


def test_names_are_unique() -> None:
    assert Counter(step.name for step in STEPS).most_common(1)[0][1] == 1
    assert Counter(goal.row for step in STEPS for goal in step.goals).most_common(1)[0][1] == 1


def test_every_precision_has_a_tolerance_and_its_steps() -> None:
    assert set(TOLERANCES) == set(get_args(Precision))
    for part in ("numbers", "time"):
        assert {step.precision for step in STEPS if step.part == part} == set(get_args(Precision))
