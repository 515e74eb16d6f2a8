"""Bars on a terminal, and what a command prints while they are there."""

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from service.cli.progress_bars import byte_bar, item_bar
from service.cli.standard_streams import write_out
from tests.service.cli.command import SMALL, start_command
from tests.service.cli.screen.models_and_targets import write_json


@pytest.fixture
def terminal() -> Iterator[tuple[TextIO, int]]:
    """A terminal of 80 columns: the end that a program writes to, and the one where it is seen."""
    seen, written = pty.openpty()
    os.set_blocking(seen, False)
    with os.fdopen(written, "w") as stream:
        yield stream, seen
    os.close(seen)


@pytest.fixture(autouse=True)
def _capable_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def shown_on(terminal: tuple[TextIO, int]) -> str:
    stream, seen = terminal
    stream.flush()
    shown = b""
    try:
        while content := os.read(seen, 1 << 16):
            shown += content
    except BlockingIOError:
        pass
    return shown.decode()


def shown_until_it_ends(terminal: tuple[TextIO, int], process: "subprocess.Popen[bytes]") -> str:
    """Reads all the time: a terminal that nobody reads is full after some seconds, and the command waits for it."""
    shown = ""
    while process.poll() is None:
        shown += shown_on(terminal)
        time.sleep(0.05)
    return shown + shown_on(terminal)


def test_what_goes_to_a_file_is_not_shown_on_the_terminal(
    terminal: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal[0])
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stdout", file)
        with item_bar("auditing", 3, "starting a worker") as on_done:
            shown = shown_on(terminal)
            on_done(1)
            write_out("a line\n")
    assert (tmp_path / "out").read_text() == "a line\n"
    assert "auditing" in shown
    assert "starting a worker" in shown
    assert "a line" not in shown_on(terminal)


def test_a_line_on_the_same_terminal_stands_above_the_bar(
    terminal: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, terminal[0])
    with item_bar("auditing", 3, "starting a worker"):
        write_out("a line\n")
    line = shown_on(terminal).partition("a line")
    assert line[0].endswith("\r\x1b[2K")
    assert "auditing" in line[2]


def test_a_bar_fits_into_80_columns_and_says_that_a_time_is_left(
    terminal: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", terminal[0])
    monkeypatch.setenv("NO_COLOR", "1")
    with byte_bar("uploading") as report:
        for done in range(1, 11):
            report(done << 28, 24 << 30)
    last = shown_on(terminal).split("\x1b[2K")[-2].splitlines()[0]
    assert "25.8 GB" in last
    assert last.endswith(" left")
    assert len(last) <= 80


@pytest.mark.slow
def test_screen_into_a_file_with_a_bar_on_the_terminal(
    prepared: Path, terminal: tuple[TextIO, int], tmp_path: Path
) -> None:
    models = write_json(tmp_path / "models.json", [{"url": str(prepared / "c0.safetensors")}])
    flags = ("screen", *SMALL, "--models", models, "--data", "folder")
    variables = {"TERM": "xterm", "COLUMNS": "80"}
    with (
        (tmp_path / "lines.jsonl").open("wb") as file,
        start_command(prepared, *flags, stdout=file, stderr=terminal[0], variables=variables) as process,
    ):
        shown = shown_until_it_ends(terminal, process)
        assert process.returncode == 0
    *lines, last = map(json.loads, (tmp_path / "lines.jsonl").read_text().splitlines())
    assert sorted(line["piece"] for line in lines) == ["one", "two"]
    assert last["summary"]["pieces"] == 2
    assert "starting a worker" in shown
    assert "2 pieces, 0 hits" in shown
    assert 'piece":' not in shown
