"""Files that change while they are scored: never a number, whatever it was computed from."""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from service.cli.exit_codes import ExitCode
from service.cli.score.file_state import FileChanged
from service.cli.score.held_out import find_data
from service.cli.score.local import score_locally
from service.cli.score.question import Question, parse_candidates
from service.cli.score.run import exit_code
from service.cli.score.score_sheet import CandidateProgress, ScoreSheet
from service.config import ExplicitSettings
from tests.recipe import SMALL_CONFIG, golden_cases, golden_competitions, make_data, write_weights

RECIPES = golden_competitions()["competition-three"].models
pytestmark = pytest.mark.usefixtures("no_processes")


def rewrite(path: Path) -> None:
    """The same size, and the times that a copy with `cp -p` would give it back."""
    before = path.stat()
    write_weights(path, SMALL_CONFIG, RECIPES[2])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path: Path) -> None:
    fresh = path.with_suffix(".fresh")
    fresh.write_bytes(path.read_bytes())
    fresh.replace(path)


def score(
    folder: Path, when: Callable[[CandidateProgress], bool], change: Callable[[], object]
) -> ScoreSheet:
    """Two candidates, a and b; `change` is done once, at the first progress that `when` is true of."""
    for name, recipe in zip("ab", RECIPES, strict=False):
        write_weights(folder / f"{name}.safetensors", SMALL_CONFIG, recipe)
    (folder / "data").write_bytes(make_data(golden_cases()["small-1024"].data))
    candidates = parse_candidates([str(folder / f"{name}.safetensors") for name in "ab"], [])
    with find_data(str(folder / "data")) as found:
        question = Question(candidates, found.files, seeds=(0,))
    changed = False

    def on_progress(progress: CandidateProgress) -> None:
        nonlocal changed
        if not changed and when(progress):
            changed = True
            change()

    settings = ExplicitSettings(small_model=True, device=("cpu",), data_dir=folder / "kept")
    sheet = asyncio.run(score_locally(question, settings, on_progress))
    assert changed
    return sheet


def evaluating_first(progress: CandidateProgress) -> bool:
    return progress.index == 0 and progress.phase == "evaluating"


@pytest.mark.parametrize("change", [rewrite, replace], ids=lambda change: change.__name__)
def test_weights_that_change_have_an_error_and_no_number(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    sheet = score(tmp_path, evaluating_first, lambda: change(tmp_path / "a.safetensors"))
    first, second = sheet.to_json()["models"]
    assert (first["loss"], first["embedding"], first["error"]["code"]) == (None, None, "file-changed")
    assert (second["error"], second["result_cached"]) == (None, False)
    assert sheet.winner == 1
    assert exit_code(sheet) == ExitCode.MACHINE


def test_weights_that_change_after_their_own_evaluation_have_none_either(tmp_path: Path) -> None:
    sheet = score(
        tmp_path,
        lambda progress: progress.index == 1 and progress.phase == "evaluating",
        lambda: rewrite(tmp_path / "a.safetensors"),
    )
    assert sheet.to_json()["models"][0]["error"]["code"] == "file-changed"


def test_the_number_of_a_file_that_changed_is_not_kept(tmp_path: Path) -> None:
    """The first candidate is, for its checksum, what it was when it was scored at first."""
    changed = score(tmp_path, evaluating_first, lambda: rewrite(tmp_path / "a.safetensors"))
    again = score(tmp_path, evaluating_first, lambda: None)
    assert [model["result_cached"] for model in changed.to_json()["models"]] == [False, False]
    assert [model["result_cached"] for model in again.to_json()["models"]] == [False, True]


def test_data_that_changes_leaves_no_number_at_all(tmp_path: Path) -> None:
    with pytest.raises(FileChanged, match="the data was changed while it was evaluated"):
        score(tmp_path, evaluating_first, lambda: (tmp_path / "data").write_bytes(b"other"))
