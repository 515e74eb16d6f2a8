"""Mistakes in the environment and in `.env` are reported before anything is started, without what they hold."""

import os
import re
from pathlib import Path

import pytest

import service.cli
from service.cli.exit_codes import ExitCode
from service.cli.main import run
from service.cli.setting_flags import settings_from
from service.config import Settings
from service.environment import OTHER_NAMES

SECRET = "secret-canary"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("SOMA_EVAL_")]:
        monkeypatch.delenv(name)


def refusal(capfd: pytest.CaptureFixture[str]) -> str:
    """The one line with which a command ends that cannot take its settings."""
    assert run(["check", "nowhere"]) == ExitCode.USAGE
    said = capfd.readouterr().err
    assert said.startswith("soma-eval: ")
    assert len(said.splitlines()) == 1
    assert SECRET not in said
    return said


@pytest.mark.parametrize("name", ["SOMA_EVAL_API_KEYS", "SOMA_EVAL_API_KEY", "soma_eval_api_keys"])
@pytest.mark.parametrize("value", ["", " "])
def test_api_keys_that_are_set_to_nothing(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, value)
    assert f"{name.upper()} in the environment is empty" in refusal(capfd)


def test_api_keys_that_are_set_to_nothing_in_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".env").write_text("SOMA_EVAL_API_KEYS=\n")
    assert "SOMA_EVAL_API_KEYS in .env is empty" in refusal(capfd)


def test_a_misspelled_name_is_reported_with_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOMA_EVAL_HOTS", SECRET)
    monkeypatch.setenv("SOMA_EVAL_QUEUE_SIZE", "3")
    (tmp_path / ".env").write_text(f"OTHER={SECRET}\nSOMA_EVAL_PROT={SECRET}\nSOMA_EVAL_XXXXXXXX=1\n")
    assert settings_from({}).queue_size == 3
    assert capfd.readouterr().err.splitlines() == [
        "soma-eval: SOMA_EVAL_HOTS in the environment is no setting and changes nothing; SOMA_EVAL_HOST is.",
        "soma-eval: SOMA_EVAL_PROT in .env is no setting and changes nothing; SOMA_EVAL_PORT is.",
        "soma-eval: SOMA_EVAL_XXXXXXXX in .env is no setting and changes nothing.",
    ]


def test_an_old_name_is_reported_with_the_new_one(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOMA_EVAL_DOWNLOAD_FLOOR_SECONDS", "7")
    assert settings_from({}).download_base_timeout_seconds == 7
    assert capfd.readouterr().err == (
        "soma-eval: SOMA_EVAL_DOWNLOAD_FLOOR_SECONDS in the environment is deprecated: "
        "use SOMA_EVAL_DOWNLOAD_BASE_TIMEOUT_SECONDS.\n"
    )


def test_the_names_that_commands_read_are_known() -> None:
    files = Path(service.cli.__file__).parent.rglob("*.py")
    read = {name for file in files for name in re.findall(r'envvar="(\w+)"', file.read_text())}
    assert read
    assert read <= OTHER_NAMES | {"SOMA_EVAL_API_KEY"}


def test_a_file_that_is_not_utf_8(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".env").write_bytes(b"SOMA_EVAL_PORT=1\n# caf\xe9\n")
    assert ".env in this folder is not UTF-8" in refusal(capfd)


def test_a_file_that_would_never_end(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / ".env")
    assert ".env in this folder is not a regular file" in refusal(capfd)


def test_a_folder_of_that_name_is_somebody_elses(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / ".env").mkdir()
    assert settings_from({}) == Settings()
    assert capfd.readouterr().err == ""


def test_no_home(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # what it does where nothing names a home
    assert "--data-dir (SOMA_EVAL_DATA_DIR): there is no home directory" in refusal(capfd)
    assert settings_from({"data_dir": Path("here")}).data_dir == Path("here")
