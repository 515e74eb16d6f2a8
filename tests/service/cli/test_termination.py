"""SIGTERM to a command: it cleans up after itself, as on Ctrl-C; and what nobody may look into or dump."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO

import psutil
import pytest

from tests.live_service import LiveService
from tests.recipe import SMALL_CONFIG, SMALL_WEIGHTS, make_data, write_weights

ROOT = Path(__file__).parents[3]
SECONDS = 60.0


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize("ctrl_c_is_ignored", [False, True], ids=["in front", "in the background"])
def test_sigterm_leaves_no_piped_data_and_no_worker(tmp_path: Path, ctrl_c_is_ignored: bool) -> None:
    with scoring_piped_data(tmp_path, ctrl_c_is_ignored) as command:
        temporary = tmp_path / "temporary"
        wait_until(lambda: any(temporary.rglob("*")))
        wait_until(lambda: bool(psutil.Process(command.pid).children()))
        workers = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(signal.SIGTERM)
        assert command.wait(SECONDS) == 128 + signal.SIGTERM
        assert command.stderr is not None
        assert command.stderr.read() == b"soma-eval: terminated; nothing is left running.\n"
        assert not any(temporary.iterdir())
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive


@contextmanager
def scoring_piped_data(folder: Path, ctrl_c_is_ignored: bool) -> Iterator["subprocess.Popen[bytes]"]:
    (folder / "temporary").mkdir()
    (folder / "data").write_bytes(make_data({"pattern": "text", "size": 4 << 20}))
    write_weights(folder / "plain.safetensors", SMALL_CONFIG, SMALL_WEIGHTS)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOMA_EVAL_")}
    flags = ("--small-model", "--device", "cpu", "--weights", "plain.safetensors", "--data", "-")
    with (folder / "data").open("rb") as piped:
        command = _start(folder, flags, piped, kept, ctrl_c_is_ignored)
    with command:
        try:
            yield command
        finally:
            command.kill()


def _start(
    folder: Path,
    flags: tuple[str, ...],
    piped: IO[bytes],
    environment: dict[str, str],
    ctrl_c_is_ignored: bool,
) -> "subprocess.Popen[bytes]":
    on_ctrl_c = signal.SIG_IGN if ctrl_c_is_ignored else signal.SIG_DFL
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli.main", "score", *flags],
        stdin=piped,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=folder,
        env={**environment, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "temporary")},
        preexec_fn=partial(signal.signal, signal.SIGINT, on_ctrl_c),
    )


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


PROTECTED = """
import ctypes, resource, sys
from service.cli import main as cli
sys.argv = ["soma-eval", "--version"]
try:
    cli.main()
except SystemExit:
    print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3))
"""
"""3 asks whether others may look into the process: PR_GET_DUMPABLE."""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can")
def test_a_command_writes_no_core_file_and_lets_nobody_look_into_it() -> None:
    command = [sys.executable, "-c", PROTECTED]
    ran = subprocess.run(command, capture_output=True, cwd=ROOT, check=True)
    assert ran.stdout.splitlines()[-1] == b"(0, 0) 0"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_the_service_writes_no_core_file(service: LiveService) -> None:
    assert psutil.Process(service.process.pid).rlimit(resource.RLIMIT_CORE) == (0, 0)
