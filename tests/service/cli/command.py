"""Commands as tests run them: in this process where that is enough, as a process where a process is the point."""

import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from service.cli.main import run
from service.cli.standard_streams import prepare_standard_streams
from tests.exec_prepared import Inherited, prepared

ROOT = Path(__file__).parents[3]
SMALL = ("--small-model", "--device", "cpu")
SECONDS = 120.0
"""After which a command that does not end fails its test."""


@dataclass(frozen=True)
class Ran:
    """What a command left behind on the screen."""

    code: int
    out: str
    err: str

    @property
    def complaints(self) -> str:
        """What was written to standard error, without the line that says what is waited for."""
        awaited = ("soma-eval: starting a worker", "soma-eval: asking the service at")
        return "".join(line for line in self.err.splitlines(keepends=True) if not line.startswith(awaited))

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class InProcess:
    """Runs command lines in a folder, within the test's own process."""

    def __init__(
        self, folder: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """`data_dir` is where the commands keep what they keep, unless their flags say otherwise."""
        self.folder = folder
        self._data_dir = data_dir
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def run(self, *arguments: str, stdin: bytes = b"", **variables: str) -> Ran:
        """`variables` are added to the environment, out of which those of soma-eval are taken."""
        with self._monkeypatch.context() as patch:
            patch.chdir(self.folder)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            for name in [name for name in os.environ if name.startswith("SOMA_EVAL_")]:
                patch.delenv(name)
            always = {"TERM": "dumb", "COLUMNS": "100", "SOMA_EVAL_DATA_DIR": str(self._data_dir)}
            for name, value in (always | variables).items():
                patch.setenv(name, value)
            self._capfd.readouterr()
            prepare_standard_streams()
            with _logging_as_before(patch):
                code = run(arguments)
            out, err = self._capfd.readouterr()
        return Ran(code, out, err)


@contextmanager
def _logging_as_before(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command sets up the log of a whole process, for this very stderr; this process goes on with other tests."""
    root, configured, configure = logging.getLogger(), structlog.get_config(), structlog.configure
    patch.setattr(root, "handlers", list(root.handlers))
    # A logger that caches its set-up keeps it for ever.
    patch.setattr(
        structlog, "configure", lambda **given: configure(**{**given, "cache_logger_on_first_use": False})
    )
    try:
        yield
    finally:
        configure(**configured)


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """The environment without the variables of soma-eval, and with these. What is kept lies beside the folder."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_EVAL_")}
    data_dir = str(folder.with_name(f"{folder.name}-data"))
    return kept | {"PYTHONPATH": str(ROOT), "TERM": "dumb", "SOMA_EVAL_DATA_DIR": data_dir} | variables


CTRL_C_ACTS = Inherited(ignores_ctrl_c=False)
"""A test run in the background of a shell would ignore it."""


def start_command(
    folder: Path,
    *arguments: str | bytes,
    inherited: Inherited = CTRL_C_ACTS,
    variables: dict[str, str] | None = None,
    **options: Any,
) -> "subprocess.Popen[bytes]":
    """`soma-eval` as a process that inherits this."""
    return subprocess.Popen(
        prepared([sys.executable, "-P", "-m", "service.cli.main", *arguments], inherited),
        cwd=folder,
        env=environment(folder, **(variables or {})),
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
    )


def run_command(folder: Path, *arguments: str | bytes, **options: Any) -> Ran:
    """`soma-eval` as a process, to its end."""
    with start_command(folder, *arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
    return Ran(process.returncode, *((text or b"").decode(errors="surrogateescape") for text in (out, err)))
