"""What a watch leaves in the data folder for the status page."""

from pathlib import Path

import pytest

from service.http_api.status_page.leaderboards import read_boards
from service.leaderboards import FOLDER_NAME, Board
from tests.live_service import LiveService
from tests.recipe import golden_cases, make_data
from tests.service.cli.command import SMALL, InProcess
from tests.service.cli.watch.watching_folder import BAD, GOOD

ODD = "run\x1b[2J/step\udcff-2.safetensors"


@pytest.fixture
def folder(plain: Path) -> Path:
    """checkpoints/ with a good one, a bad one and half of one, and data beside it."""
    checkpoints = plain / "checkpoints"
    (checkpoints / ODD).parent.mkdir(parents=True)
    (checkpoints / "step-1.safetensors").write_bytes(BAD)
    (checkpoints / ODD).write_bytes(GOOD)
    (checkpoints / "half.safetensors").write_bytes(GOOD[:1000])
    (plain / "data").write_bytes(make_data(golden_cases()["small-short"].data))
    return plain


def boards(data_dir: Path) -> tuple[Board, ...]:
    now = max((path.stat().st_mtime for path in (data_dir / FOLDER_NAME).iterdir()), default=0.0)
    return read_boards(data_dir / FOLDER_NAME, now)


@pytest.mark.usefixtures("no_processes")
def test_a_service_on_the_same_data_folder_finds_the_board(
    folder: Path, in_plain: InProcess, tmp_path: Path
) -> None:
    data_dir = tmp_path / "kept"
    once = ("watch", "checkpoints", "--data", str(folder / "data"), "--once", "--data-dir", str(data_dir))
    for _ in range(2):  # the second run writes the same file
        ran = in_plain.run(*once, *SMALL, "--seeds", "2")
        assert (ran.code, ran.complaints) == (3, "")
    (board,) = boards(data_dir)
    assert [row.name for row in board.ranked] == [
        r"run\x1b[2J/step\udcff-2.safetensors",
        "step-1.safetensors",
    ]
    assert board.ranked[0].loss < board.ranked[1].loss
    assert board.ranked[0].loss_spread > 0
    assert f"{board.ranked[0].loss:.6f}" in ran.out
    assert [(row.name, row.code) for row in board.failed] == [("half.safetensors", "file-incomplete")]
    assert (board.num_ranked, board.num_failed) == (2, 1)
    assert board.folder == "checkpoints"
    assert board.question.startswith("100 bytes of data, seeds 0 to 1;")
    (path,) = (data_dir / FOLDER_NAME).iterdir()
    assert str(tmp_path) not in path.read_text()  # no path above the watched folder


@pytest.mark.usefixtures("no_processes")
def test_other_data_is_another_board(folder: Path, in_plain: InProcess, tmp_path: Path) -> None:
    (folder / "more").write_bytes(b"other bytes")
    for data in ("data", "more"):
        in_plain.run(
            *("watch", "checkpoints", "--data", data, "--once", "--data-dir", str(tmp_path / "kept")), *SMALL
        )
    assert len(boards(tmp_path / "kept")) == 2


@pytest.mark.usefixtures("no_processes")
def test_a_watch_goes_on_where_the_board_cannot_be_written(
    folder: Path, in_plain: InProcess, tmp_path: Path
) -> None:
    (tmp_path / "kept").mkdir()
    once = (
        "watch",
        "checkpoints",
        "--data",
        "data",
        "--once",
        "--json",
        "--data-dir",
        str(tmp_path / "kept"),
    )
    assert in_plain.run(*once, *SMALL).code == 3
    for path in (tmp_path / "kept" / FOLDER_NAME).iterdir():
        path.unlink()
    (tmp_path / "kept" / FOLDER_NAME).rmdir()
    (tmp_path / "kept" / FOLDER_NAME).write_bytes(b"")
    ran = in_plain.run(*once, *SMALL)
    assert len(ran.out.splitlines()) == 3
    assert ran.err.count("the status page will not show this") == 1


def test_a_watch_that_a_service_works_for_makes_no_data_folder(
    folder: Path, in_plain: InProcess, service: LiveService, tmp_path: Path
) -> None:
    once = ("watch", "checkpoints", "--data", "data", "--once", "--url", service.http_url)
    assert in_plain.run(*once, SOMA_EVAL_DATA_DIR=str(tmp_path / "none")).code == 3
    assert not (tmp_path / "none").exists()
    (tmp_path / "here").mkdir()
    assert in_plain.run(*once, SOMA_EVAL_DATA_DIR=str(tmp_path / "here")).code == 3
    assert len(boards(tmp_path / "here")) == 1
