"""What a watch shows to people."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.live import Live

from service.cli.score.file_state import FileState
from service.cli.score.held_out import HeldOut
from service.cli.score.question import Candidate, Question
from service.cli.score.score_sheet import CandidateProgress, Outcome
from service.cli.watch.checkpoint_folder import CheckpointFolder
from service.cli.watch.display import text_lines
from service.cli.watch.leaderboard import Leaderboard, Row
from service.cli.watch.live_table import LiveTable
from service.cli.watch.training_curve import steps_of, training_curve
from service.errors import NonFiniteResult
from tests.service.cli.score.made_up_sheets import made_up_run

QUESTION = Question((), (HeldOut("data", Path("data"), 4),), seeds=(0,))


def row(name: str, loss: float | None, second: int = 0) -> Row:
    candidate, state = Candidate(name), FileState(1, second, 1, second * 10**9, 0)
    error = NonFiniteResult("the loss is not finite") if loss is None else None
    return Row(Path(name), state, Outcome(candidate, () if loss is None else (made_up_run(loss),), error))


def board_of(*rows: Row) -> Leaderboard:
    board = Leaderboard(QUESTION, Path())
    for each in rows:
        board.add(each, {other.path for other in rows})
    return board


def test_a_line_for_each_row_where_there_is_no_terminal() -> None:
    rows = [row("a\x1b[2J", 5.0, 1), row("b", 4.5, 2), row("c", None, 3)]
    board = board_of(*rows)
    assert text_lines(rows[0], board) == "a\\x1b[2J: loss 5.000000, place 2 of 2\n"
    assert text_lines(rows[1], board) == "b: loss 4.500000, place 1 of 2\n"
    assert text_lines(rows[2], board).startswith("✗ c: the loss is not finite. ")


async def test_the_table_shows_the_best_of_many_and_what_is_done_now(tmp_path: Path) -> None:
    rows = [row(f"step-{i}.safetensors", 5.0 - 0.001 * i, i) for i in range(100)]
    board = board_of(*rows, row("odd", None, 200))
    console = Console(file=io.StringIO(), force_terminal=True, width=100, height=30)
    (tmp_path / "new.safetensors").write_bytes(b"")
    folder = CheckpointFolder(tmp_path)
    await folder.look()
    with Live(console=console, auto_refresh=False) as live:
        table = LiveTable(live, Path("checkpoints"))
        table.start("starting a worker")
        with table.scoring(Question((Candidate("checkpoints/run/new"),), QUESTION.data, (0,))) as on_progress:
            table.refresh(board, folder)
            on_progress(CandidateProgress(0, "evaluating", 1.0, 4.0))
            table.refresh(board, folder)
        with table.hook_output() as output:
            Path(f"/dev/fd/{output}").write_text("said \x1b[2J\n")
        table.refresh(board, folder)
        console_text = console.file
        assert isinstance(console_text, io.StringIO)
        shown = console_text.getvalue()
        table.end()
    assert "watching checkpoints: starting a worker" in shown
    assert "watching checkpoints: run/new waiting for a worker; 1 waiting" in shown
    assert "watching checkpoints: run/new evaluating, 25%; 1 waiting" in shown
    assert "watching checkpoints: 1 not complete yet" in shown
    assert "step-99.safetensors" in shown
    assert "step-50.safetensors" not in shown
    assert "And 88 more with a higher loss. No longer in the folder: 101 of 101." in shown
    assert "✗ odd: the loss is not finite" in shown
    assert "said \\x1b[2J" in shown
    left = console_text.getvalue()[len(shown) :]
    assert "step-99.safetensors" in left
    assert "watching" not in left


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["step-9", "step-10", "step-100"], [9, 10, 100]),
        (["run2/step-1/model", "run2/step-2/model"], [1, 2]),
        (["loss-31", "loss-28"], None),
        (["step-1", "step-1/model"], None),
        (["first", "step-2"], None),
    ],
)
def test_the_training_step_is_read_off_the_names_where_it_grows(
    names: list[str], steps: list[int] | None
) -> None:
    assert steps_of([row(f"{name}.safetensors", 5.0, i) for i, name in enumerate(names)]) == steps


def test_the_curve_goes_along_the_steps() -> None:
    rows = [
        row("step-10.safetensors", 4.0, 2),
        row("step-5.safetensors", 5.0, 1),
        row("x.safetensors", None, 3),
    ]
    figure = training_curve(rows, (0, 1))
    assert "&quot;labels&quot;: [&quot;5&quot;, &quot;10&quot;]" in figure
    assert "&quot;v&quot;: [5.0, 4.0]" in figure
    assert training_curve(rows[:1], (0, 1)) == ""
    assert np.isfinite(rows[0].outcome.loss or np.nan)
