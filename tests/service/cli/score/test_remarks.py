"""What is said of the numbers, and what is shown of them."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from service.cli.score.file_state import FileUnreadable
from service.cli.score.remarks import remarks
from service.cli.score.run import command_line, exit_code
from service.cli.score.score_sheet import Outcome, ScoreSheet
from service.cli.score.table import fitting_table, print_sheet
from service.config import ExplicitSettings
from tests.service.cli.score.made_up_sheets import made_up_run, sheet


def said(scored: ScoreSheet) -> str:
    return "\n".join(line.plain for line in remarks(scored))


def test_near_ties_are_named() -> None:
    assert sheet(5.0, 5.2, 5.3).near_ties() == []
    assert sheet(5.0, 5.04, 5.3, 5.01).near_ties() == [0, 3, 1]
    assert "A near tie: a, d and b. All 3 are within" in said(sheet(5.0, 5.04, 5.3, 5.01))
    assert "near tie" not in said(sheet(5.0))


def test_an_exact_tie_is_no_win() -> None:
    assert sheet(5.0, 5.0).num_wins == 0
    assert sheet(5.0, 5.5).num_wins == 1
    assert sheet(5.0, None).num_wins == 1


def test_a_best_that_does_not_always_win_says_so() -> None:
    def of_two_seeds(a: tuple[float, float], b: tuple[float, float]) -> str:
        question = replace(sheet(0.0, 0.0).question, seeds=(0, 1))
        runs = [tuple(map(made_up_run, losses)) for losses in (a, b)]
        outcomes = (Outcome(c, r) for c, r in zip(question.candidates, runs, strict=True))
        return said(ScoreSheet(question, tuple(outcomes)))

    assert "ahead of all others in 2 of 2 runs." in of_two_seeds((5.0, 5.0), (6.0, 6.0))
    assert "in 1 of 2 runs: who wins depends on the file or the seed" in of_two_seeds((5.0, 5.0), (4.5, 7.0))


def test_what_is_compared_with_nothing_says_so() -> None:
    assert "it is compared with nothing" in said(sheet(5.0, None))
    assert "compared with nothing" not in said(sheet(5.0))


def test_a_candidate_that_was_not_evaluated_leaves_the_comparison_incomplete() -> None:
    whole = sheet(5.0, 5.5)
    lost = replace(whole.outcomes[1], runs=(), error=FileUnreadable("the file could not be read"))
    scored = replace(whole, outcomes=(whole.outcomes[0], lost))
    assert (exit_code(scored), exit_code(sheet(5.0, None)), exit_code(sheet(None))) == (3, 0, 1)
    assert "The comparison is incomplete" in said(scored)


def test_nothing_of_what_others_say_is_obeyed_by_a_terminal() -> None:
    assert r"odd \x1b[2J words" in said(sheet(None))


def test_hidden_columns_are_named() -> None:
    scored = sheet(5.0, 5.5)
    table, line = fitting_table(scored, Console(width=60))
    shown = {str(column.header) for column in table.columns}
    assert "loss" in shown
    assert line is not None
    needed = int(line.plain.partition("A terminal of ")[2].split()[0])
    assert line.plain.startswith("Not shown: ")
    assert not shown & set(line.plain.partition(". ")[0].removeprefix("Not shown: ").split(", "))
    assert fitting_table(scored, Console(width=needed))[1] is None
    assert fitting_table(scored, Console(width=needed - 1))[1] is not None


def test_a_row_without_a_distance_is_no_bug(capsys: pytest.CaptureFixture[str]) -> None:
    whole = sheet(5.0, 5.5)
    near = replace(whole.outcomes[1], runs=(replace(whole.outcomes[1].runs[0], distance=0.5),))
    print_sheet(replace(whole, outcomes=(whole.outcomes[0], near)))
    assert "distance" in capsys.readouterr().out


def test_the_command_of_a_report_holds_no_secret() -> None:
    settings = ExplicitSettings(small_model=True, device=("cpu",))
    weights = ["https://user:secret0@host/a?signature=secret1#secret2", "b c"]
    command = command_line(weights, "data", 1, 2, None, None, [Path("key")], settings)
    assert command == (
        "soma-eval score https://host/a 'b c' --data data --seed 1 --seeds 2 --key-file key "
        "--small-model --device cpu --precision float32"
    )
