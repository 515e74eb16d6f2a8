"""The leaderboards of watches on the status page, and what is not taken for one."""

import asyncio
import json
import os
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from service.http_api.status_page import leaderboards
from service.http_api.status_page.leaderboards import MAX_AGE_SECONDS, LeaderboardList, read_boards
from service.http_api.status_page.rendering import page
from service.leaderboards import FOLDER_NAME, Board, FailedRow, RankedRow
from tests.service.http_api.status_page.page_text import text_of

NOW = 1_800_000_000.0
BOARD = Board(
    folder="run",
    question="5,000 bytes of held-out.txt, seeds 0 to 2",
    changed=NOW - 60,
    ranked=tuple(RankedRow(f"step-{i}", 3.0 + i / 16, 0.01, 2.9, 1.5, False) for i in range(12)),
    failed=(FailedRow("half", "file-incomplete", "A file is incomplete"),),
    num_ranked=12,
    num_failed=1,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / FOLDER_NAME).mkdir()
    return tmp_path / FOLDER_NAME


def write(path: Path, board: Board = BOARD) -> None:
    path.write_text(json.dumps(asdict(board)))


def test_the_latest_come_first_and_old_ones_not_at_all(folder: Path) -> None:
    for index in range(6):
        write(folder / f"{index}.json", replace(BOARD, folder=f"run {index}", changed=NOW - 100 + index))
    write(folder / "old.json", replace(BOARD, folder="old", changed=NOW - MAX_AGE_SECONDS))
    write(folder / "future.json", replace(BOARD, folder="future", changed=NOW + 3600))
    assert [board.folder for board in read_boards(folder, NOW)] == ["run 5", "run 4", "run 3", "run 2"]


def test_what_no_watch_has_written_is_left_out(folder: Path, tmp_path: Path) -> None:
    write(folder / "whole.json")
    write(tmp_path / "elsewhere.json")
    (folder / "link.json").symlink_to(tmp_path / "elsewhere.json")
    os.mkfifo(folder / "pipe.json")
    (folder / "folder.json").mkdir()
    (folder / "empty.json").write_text("")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "large.json").write_text(json.dumps(asdict(BOARD)) + " " * (1 << 20))
    (folder / "surrogate.json").write_text(json.dumps({**asdict(BOARD), "folder": "\udcff"}))
    (folder / "later.json").write_text(json.dumps({**asdict(BOARD), "format": 2}))
    (folder / "moment.json").write_text(json.dumps({**asdict(BOARD), "changed": float("inf")}))
    (folder / "less.json").write_text(json.dumps({"format": 1}))
    write(folder / ".draft.json")
    assert read_boards(folder, NOW) == (BOARD,)


def test_no_folder_is_no_board(tmp_path: Path) -> None:
    assert read_boards(tmp_path / FOLDER_NAME, NOW) == ()


def test_the_panel_shows_the_best_and_says_what_it_leaves_out() -> None:
    words = text_of(page("panels/leaderboards.html", value=(BOARD,), now=NOW))
    assert "run last checkpoint 1 min ago" in words
    assert "1 step-0 3.000000 0.010000 best 2.900000 1.5000" in words
    assert "10 step-9 3.562500 0.010000 +0.562500" in words
    assert "step-10" not in words
    assert "half: file-incomplete A file is incomplete" in words
    assert words.endswith("5,000 bytes of held-out.txt, seeds 0 to 2. 2 more with a higher loss.")


def test_names_are_escaped() -> None:
    odd = replace(BOARD.ranked[0], name="<script>alert(1)</script>")
    html = page("panels/leaderboards.html", value=(replace(BOARD, ranked=(odd,)),), now=NOW)
    assert "<script" not in html
    assert odd.name in text_of(html)


async def test_a_disk_that_hangs_keeps_nobody_waiting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed, works = os.listdir, threading.Event()

    def hang(path: Path) -> list[str]:
        works.wait()
        return listed(path)

    monkeypatch.setattr(os, "listdir", hang)
    monkeypatch.setattr(leaderboards, "_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(leaderboards, "LOOK_AGAIN_SECONDS", 0.0)
    monkeypatch.setattr(time, "time", lambda: NOW)
    write(folder / "whole.json")
    boards = LeaderboardList(folder.parent)
    assert await boards.read() == ()
    assert await boards.read() == ()
    works.set()
    while await boards.read() != (BOARD,):
        await asyncio.sleep(0.01)
