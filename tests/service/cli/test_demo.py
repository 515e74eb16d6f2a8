"""`soma-eval demo` as a command in somebody's folder: it runs its own code alone, and leaves nothing behind."""

import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.service.cli.command import SMALL, run_command, start_command


def child_of(process: subprocess.Popen[bytes]) -> psutil.Process:
    """The training process, once it has loaded torch."""
    parent = psutil.Process(process.pid)
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        for child in parent.children():
            if any("torch" in mapped.path for mapped in child.memory_maps()):
                return child
        time.sleep(0.05)
    raise TimeoutError(f"no process trains: {process.communicate()}")


def test_code_of_the_current_folder_is_not_run_and_nothing_is_left(tmp_path: Path) -> None:
    trap = f"import pathlib; pathlib.Path({str(tmp_path / 'sprung')!r}).touch(); raise SystemExit(9)"
    for name in ("numpy", "torch", "random"):
        (tmp_path / f"{name}.py").write_text(trap)
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__init__.py").write_text(trap)
    (tmp_path / "tmp").mkdir()
    process = start_command(tmp_path, "demo", "--seconds", "60", variables={"TMPDIR": str(tmp_path / "tmp")})
    try:
        training = child_of(process)
        process.send_signal(signal.SIGINT)
        _out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, b"soma-eval: interrupted; nothing is left running.\n")
    assert not training.is_running()
    assert not (tmp_path / "sprung").exists()
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.slow
def test_the_demo_works(tmp_path: Path) -> None:
    flags = ("--seconds", "0.5", "--precision", "float32", "--data-dir", "of-the-demo")
    ran = run_command(tmp_path, "demo", *SMALL, *flags)
    assert (ran.code, ran.err) == (0, "")
    assert "The winner is trained" in ran.out
