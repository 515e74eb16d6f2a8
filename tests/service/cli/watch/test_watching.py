"""Files that appear, grow, are replaced and renamed while a folder is watched."""

import asyncio
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from service.cli.score.file_state import FileChanged
from service.cli.score.question import Question
from service.cli.score.score_sheet import OnProgress, Outcome, ScoreSheet
from service.errors import WorkerCrashed
from tests.recipe import SMALL_CONFIG, SMALL_WEIGHTS, make_weights, safetensors_bytes
from tests.service.cli.watch.watching_folder import BAD, GOOD, NEAR, QUICK, watching

pytestmark = pytest.mark.usefixtures("no_processes")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoints"
    made.mkdir()
    return made


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


async def test_a_half_written_file_is_waited_for(folder: Path, kept: Path) -> None:
    growing = folder / "a.safetensors"
    async with watching(folder, kept) as (_, shown):
        with growing.open("wb") as file:
            for part in (GOOD[:4], GOOD[4:100], GOOD[100:20_000], GOOD[20_000:-1]):
                file.write(part)
                file.flush()
                (folder / f"{len(part)}.safetensors").write_bytes(BAD)
                assert (await shown.next_row())["weights"].endswith(f"{len(part)}.safetensors")
            file.write(GOOD[-1:])
        row = await shown.next_row()
    assert row["weights"] == str(growing)
    assert (row["rank"], row["error"], row["result_cached"]) == (1, None, False)
    assert shown.names.count("a.safetensors") == 1


async def test_an_incomplete_file_that_stalls_has_an_error_until_it_goes_on(folder: Path, kept: Path) -> None:
    stalled = folder / "a.safetensors"
    stalled.write_bytes(GOOD[:-1])
    async with watching(folder, kept, pace=replace(QUICK, stalled_seconds=0.3)) as (watch, shown):
        row = await shown.next_row()
        assert row["error"]["code"] == "file-incomplete"
        assert f"{len(GOOD) - 1:,} bytes of the {len(GOOD):,}" in row["error"]["detail"]
        assert row["loss"] is None
        stalled.write_bytes(GOOD)
        assert (await shown.next_row())["rank"] == 1
        assert len(watch.board.rows) == 1


async def test_bad_weights_have_an_error_row_and_cost_the_others_nothing(folder: Path, kept: Path) -> None:
    tensors = make_weights(SMALL_CONFIG, SMALL_WEIGHTS)
    tensors["predictor.bias"] = np.full_like(tensors["predictor.bias"], np.nan)
    async with watching(folder, kept) as (watch, shown):
        for name, content, code in [
            ("nan", safetensors_bytes(tensors), "non-finite-result"),
            ("page", b"<!doctype html>", "weights-invalid"),
            ("trailing", GOOD + b"more", "weights-invalid"),
        ]:
            (folder / f"{name}.safetensors").write_bytes(content)
            row = await shown.next_row()
            assert (row["error"]["code"], row["loss"], row["rank"]) == (code, None, None)
        (folder / "good.safetensors").write_bytes(GOOD)
        assert (await shown.next_row())["rank"] == 1
        assert watch.board.sheet().winner == 0


async def test_a_file_replaced_under_its_name_is_scored_anew(folder: Path, kept: Path) -> None:
    last = folder / "last.safetensors"
    last.write_bytes(BAD)
    async with watching(folder, kept) as (watch, shown):
        before = await shown.next_row()
        (folder / "fresh").write_bytes(GOOD)
        (folder / "fresh").replace(last)
        after = await shown.next_row()
        assert after["weights"] == before["weights"]
        assert after["loss"] < before["loss"]
        assert len(watch.board.rows) == 1


async def test_a_renamed_file_is_not_computed_again_and_has_one_row(folder: Path, kept: Path) -> None:
    (folder / "a.safetensors").write_bytes(GOOD)
    async with watching(folder, kept) as (watch, shown):
        before = await shown.next_row()
        (folder / "a.safetensors").rename(folder / "best.safetensors")
        after = await shown.next_row()
        assert after["weights"] == str(folder / "best.safetensors")
        assert (before["result_cached"], after["result_cached"]) == (False, True)
        assert after["loss"] == before["loss"]
        assert [row.path.name for row in watch.board.rows] == ["best.safetensors"]


async def test_a_file_that_is_gone_keeps_its_row(folder: Path, kept: Path) -> None:
    (folder / "a.safetensors").write_bytes(GOOD)
    async with watching(folder, kept) as (watch, shown):
        await shown.next_row()
        (folder / "a.safetensors").unlink()
        (folder / "b.safetensors").write_bytes(BAD)
        assert (await shown.next_row())["rank"] == 2
        assert [row.path.name for row in watch.board.ranked] == ["a.safetensors", "b.safetensors"]


async def test_the_newest_comes_first_and_a_restart_computes_nothing(folder: Path, kept: Path) -> None:
    for age, (name, content) in enumerate([("new", BAD), ("middle", NEAR), ("old", GOOD)]):
        path = folder / f"{name}.safetensors"
        path.write_bytes(content)
        os.utime(path, (1e9 - age, 1e9 - age))
    (folder / ".hidden.safetensors").write_bytes(GOOD)
    (folder / "optimizer.pt").write_bytes(GOOD)
    first: list[float] = []
    for was_kept in (False, True):
        async with watching(folder, kept) as (_, shown):
            while len(shown.rows) < 3:
                await shown.next_row()
        assert shown.names == ["new.safetensors", "middle.safetensors", "old.safetensors"]
        assert [row["result_cached"] for row in shown.rows] == [was_kept] * 3
        assert [row["rank"] for row in shown.rows] == [1, 1, 1]
        first = first or [row["loss"] for row in shown.rows]
        assert [row["loss"] for row in shown.rows] == first


async def test_checkpoints_in_folders_of_their_own_are_found(folder: Path, kept: Path) -> None:
    async with watching(folder, kept) as (_, shown):
        (folder / "step-10").mkdir()
        (folder / "step-10" / "model.safetensors").write_bytes(GOOD)
        assert (await shown.next_row())["weights"] == str(folder / "step-10" / "model.safetensors")


async def test_trouble_that_passes_is_said_once_and_tried_again(
    folder: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.cli.watch.watching._FIRST_RETRY_SECONDS", 0.01)
    failures = [WorkerCrashed("gone"), WorkerCrashed("gone")]
    async with watching(folder, kept) as (watch, shown):
        score = watch._score

        async def sometimes_score(question: Question, on_progress: OnProgress) -> ScoreSheet:
            if failures:
                return ScoreSheet(question, (Outcome(question.candidates[0], error=failures.pop()),))
            return await score(question, on_progress)

        watch._score = sometimes_score
        (folder / "a.safetensors").write_bytes(GOOD)
        assert (await shown.next_row())["error"]["code"] == "worker-crashed"
        assert (await shown.next_row())["rank"] == 1
    assert not failures
    assert len(shown.rows) == 2


async def test_data_that_changes_ends_the_watch(folder: Path, kept: Path) -> None:
    async with watching(folder, kept) as (watch, shown):
        kept.with_suffix(".data").write_bytes(b"other data")
        (folder / "a.safetensors").write_bytes(GOOD)
        with pytest.raises(FileChanged, match="the data was changed"):
            await watch.run(once=True)
    assert not shown.rows


async def test_a_new_best_is_announced_where_it_leads_by_more_than_the_tolerance(
    folder: Path, kept: Path
) -> None:
    hooks: list[str] = []
    async with watching(folder, kept, hooks) as (_, shown):
        for name, content in [("first", BAD), ("second", NEAR), ("third", GOOD), ("fourth", BAD)]:
            (folder / f"{name}.safetensors").write_bytes(content)
            await shown.next_row()
            await asyncio.sleep(0)
    assert [Path(json.loads(line)["weights"]).name for line in hooks] == ["second.safetensors"]
    async with watching(folder, kept, hooks) as (_, shown):
        while len(shown.rows) < 4:
            await shown.next_row()
    assert len(hooks) == 1
