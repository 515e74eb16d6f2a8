"""Flags are made from the settings: every one of them, with its type, its default and its help."""

import re
from pathlib import Path
from typing import Any

import pytest

from service.config import Settings
from tests.service.cli.command import InProcess, run_command

FLAGS = {name: f"--{name.replace('_', '-')}" for name in Settings.model_fields} | {"api_keys": "--api-key"}


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """What `serve` was run with, in place of running it."""
    seen: list[Settings] = []

    async def run_server(settings: Settings, _print_addresses: object) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr("service.server.serve", run_server)
    return seen


def help_of(in_process: InProcess, command: str) -> str:
    return " ".join(in_process.run(command, "--help").out.split())


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_has_a_flag_with_its_help(in_process: InProcess, name: str) -> None:
    shown = in_process.run("serve", "--help").out
    (block,) = re.findall(rf"^  {FLAGS[name]}(?= |/).*(?:\n +[^-\n ].*| /.*)*", shown, re.MULTILINE)
    help_words = re.sub(r"\W+", "", block)
    assert re.sub(r"\W+", "", Settings.model_fields[name].description or "") in help_words


def test_defaults_are_shown_as_people_write_them(in_process: InProcess) -> None:
    shown = help_of(in_process, "serve")
    defaults = ("100 GiB", "1 MiB", "1 MiB/s", "3600", "8000", "auto", "~/.cache/soma-eval", "float32")
    for default in defaults:
        assert f"[default: {default}]" in shown
    assert "[default: cpu]" in help_of(in_process, "demo")


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--port", "0"], "port", 0),
        (["--grpc-port", "off"], "grpc_port", "off"),
        (["--grpc-port", "7"], "grpc_port", 7),
        (["--device", "cuda:0,cuda:1"], "device", ("cuda:0", "cuda:1")),
        (["--small-model"], "small_model", True),
        (["--full-model"], "small_model", False),
        (["--https-only"], "allow_http", False),
        (["--min-download-rate", "2.5"], "min_download_rate", 2.5),
        (["--log-level", "debug"], "log_level", "debug"),
        ([], "queue_size", 64),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_flag_becomes_the_setting(
    in_process: InProcess, served: list[Settings], arguments: list[str], name: str, value: Any
) -> None:
    ran = in_process.run("serve", *arguments)
    assert (ran.code, ran.complaints) == (0, "")
    assert getattr(served[0], name) == value


def test_api_keys_are_repeated(in_process: InProcess, served: list[Settings]) -> None:
    in_process.run("serve", "--api-key", "a", "--api-key", "b", SOMA_EVAL_API_KEYS="c")
    assert [key.get_secret_value() for key in served[0].api_keys] == ["a", "b"]


def test_an_old_flag_still_counts_with_a_warning(in_process: InProcess, served: list[Settings]) -> None:
    ran = in_process.run("serve", "--download-floor-seconds", "7")
    assert ran.code == 0
    assert ran.complaints == (
        "soma-eval: --download-floor-seconds is deprecated: use --download-base-timeout-seconds.\n"
    )
    in_process.run("serve", "--download-floor-seconds", "7", "--download-base-timeout-seconds", "8")
    assert [settings.download_base_timeout_seconds for settings in served] == [7, 8]
    assert "floor" not in help_of(in_process, "serve")


def test_a_flag_that_changes_nothing_is_accepted_and_not_shown(in_process: InProcess) -> None:
    assert "--precision" not in help_of(in_process, "check")
    ran = in_process.run(
        "check", "sealed.enc", "--small-model", "--key-file", "key", "--precision", "float32"
    )
    assert (ran.code, ran.complaints) == (0, "")


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("score --precision ", ["float32", "tf32", "bf16", "float32-split"]),
        ("score --device cuda", ["cuda", "cuda:0", "cuda:1"]),
        ("serve --log-format ", ["console", "json"]),
        ("serve --grpc-port ", ["off"]),
        ("cache ", ["ls", "rm", "path"]),
    ],
)
def test_a_shell_offers_the_values(plain: Path, words: str, offered: list[str]) -> None:
    line = f"soma-eval {words}"
    variables = {
        "_SOMA_EVAL_COMPLETE": "complete_bash",
        "COMP_WORDS": line,
        "COMP_CWORD": str(line.count(" ")),
    }
    assert run_command(plain, variables=variables).out.split() == offered
