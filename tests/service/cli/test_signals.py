"""Ctrl-C and SIGTERM: a command cleans up after itself; and its memory is private."""

import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.exec_prepared import Inherited
from tests.live_service import LiveService
from tests.recipe import SMALL_CONFIG, SMALL_WEIGHTS, make_data, write_weights
from tests.service.cli.command import ROOT, SMALL, start_command

pytestmark = pytest.mark.slow

SECONDS = 60.0
STARTING = b"soma-eval: starting a worker for cpu, which tests itself first.\n"


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
        assert command.stderr.read() == STARTING + b"soma-eval: terminated; nothing is left running.\n"
        assert not any(temporary.iterdir())
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive


@contextmanager
def scoring_piped_data(folder: Path, ctrl_c_is_ignored: bool) -> Iterator["subprocess.Popen[bytes]"]:
    (folder / "temporary").mkdir()
    (folder / "data").write_bytes(make_data({"pattern": "text", "size": 4 << 20}))
    write_weights(folder / "plain.safetensors", SMALL_CONFIG, SMALL_WEIGHTS)
    with (folder / "data").open("rb") as piped:
        command = start_command(
            *(folder, "score", *SMALL, "--weights", "plain.safetensors", "--data", "-"),
            stdin=piped,
            inherited=Inherited(ignores_ctrl_c=ctrl_c_is_ignored),
            variables={"TMPDIR": str(folder / "temporary")},
        )
    with command:
        try:
            yield command
        finally:
            command.kill()


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


def test_ctrl_c_ends_a_command_and_its_workers(tmp_path: Path) -> None:
    with scoring_piped_data(tmp_path, ctrl_c_is_ignored=False) as command:
        wait_until(lambda: bool(psutil.Process(command.pid).children()))
        workers = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=SECONDS)
        assert command.returncode == 130
        assert (out, err) == (b"", STARTING + b"soma-eval: interrupted; nothing is left running.\n")
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
