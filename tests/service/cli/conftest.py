"""What the tests of several commands share."""

import json
from pathlib import Path

import base58
import numpy as np
import pytest

from tests.recipe import (
    SMALL_CONFIG,
    SMALL_WEIGHTS,
    TEST_KEY,
    golden_cases,
    golden_competitions,
    make_data,
    small_weights_bytes,
    write_weights,
)
from tests.service.cli.command import InProcess
from tests.service.cli.computing_pool import open_computing_pool


@pytest.fixture
def no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands evaluate in the test's own process."""
    monkeypatch.setattr("service.cli.score.local.open_pool", open_computing_pool)
    monkeypatch.setattr("service.lifespan.open_pool", open_computing_pool)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A folder with plain.safetensors and nothing else."""
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "plain.safetensors").write_bytes(small_weights_bytes())
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the golden candidates, plain and encrypted, a broken one, data and targets.

    It is shared: a test must leave it as it was.
    """
    folder = tmp_path_factory.mktemp("prepared")
    competition, short = golden_competitions()["competition-three"], golden_cases()["small-short"]
    for i, recipe in enumerate(competition.models):
        write_weights(folder / f"c{i}.safetensors", SMALL_CONFIG, recipe)
    write_weights(folder / "plain.safetensors", SMALL_CONFIG, SMALL_WEIGHTS)
    write_weights(folder / "sealed.enc", SMALL_CONFIG, SMALL_WEIGHTS, TEST_KEY)
    write_weights(folder / "leak.safetensors", SMALL_CONFIG, golden_cases()["leak-mixed"].weights)
    (folder / "broken.safetensors").write_bytes(b"<!doctype html>")
    (folder / "text").write_bytes(make_data(competition.data))
    (folder / "short").write_bytes(make_data(short.data))
    (folder / "nothing").write_bytes(b"")
    (folder / "folder" / ".git").mkdir(parents=True)
    (folder / "folder" / ".git" / "HEAD").write_bytes(b"hidden")
    (folder / "folder" / "one").write_bytes(make_data(short.data))
    (folder / "folder" / "two").write_bytes(make_data(golden_cases()["small-1024"].data))
    (folder / "key").write_text(f"{base58.b58encode(TEST_KEY).decode()}\n")
    (folder / "target.json").write_text(json.dumps(competition.target.tolist()))
    np.save(folder / "target.npy", competition.target)
    return folder


@pytest.fixture
def in_process(
    prepared: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    no_processes: None,
) -> InProcess:
    """Runs commands in the prepared folder, without a process of their own."""
    return InProcess(prepared, tmp_path_factory.mktemp("data"), monkeypatch, capfd)


@pytest.fixture
def in_plain(
    plain: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> InProcess:
    """The same in a folder with plain.safetensors and nothing else."""
    return InProcess(plain, tmp_path_factory.mktemp("data"), monkeypatch, capfd)
