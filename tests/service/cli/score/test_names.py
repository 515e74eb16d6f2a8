"""Names of candidates in narrow places: short, printable, and never two that look the same."""

import itertools

import pytest

from service.cli.score.names import distinct_names

RUN = "/data/experiments/2026-01/a-very-long-name-of-a-run/checkpoints"


@pytest.mark.parametrize(
    "names",
    [
        [f"{RUN}/step-{step}/model.safetensors" for step in (100, 200, 1000)],
        [f"{RUN}/model.safetensors", f"{RUN}/model.safetensors.bak"],
        [f"{x}{'a' * 100}{y}" for x, y in itertools.product("xy", "xy")],
        ["a" * 50 + "1" + "a" * 50, "a" * 50 + "2" + "b" * 50, "a" * 101],
        ["short", f"{RUN}/model.safetensors"],
        ["a" * n for n in (40, 41, 42)],
    ],
    ids=len,
)
def test_names_that_differ_stay_different(names: list[str]) -> None:
    short = distinct_names(names, 32)
    assert len(set(short)) == len(names)
    assert all(len(name) <= 32 for name in short)


def test_what_differs_is_what_is_shown() -> None:
    names = [f"{RUN}/step-{step}/model.safetensors" for step in (100, 200)]
    assert [
        name.count(step) for name, step in zip(distinct_names(names, 32), ("100", "200"), strict=True)
    ] == [1, 1]


def test_short_names_are_left_alone_and_escapes_are_written_out() -> None:
    assert distinct_names(["a", "b/c"], 32) == ["a", "b/c"]
    assert distinct_names(["\x1b[2J", "\udcff"], 32) == ["\\x1b[2J", "\\udcff"]


def test_one_name_twice_stays_one_name() -> None:
    assert len(set(distinct_names([f"{RUN}/a"] * 2, 32))) == 1
