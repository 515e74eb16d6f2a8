"""`make` on a machine that is not prepared: it says what is missing, and goes on once that is there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = f'"{sys.executable}"'
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
"""Without what a `make` that runs these tests hands on."""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")


def make(venv: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Make the virtual environment, and nothing else."""
    return subprocess.run(
        ["make", f"VENV={venv}", f"PYTHON={python}", f"{venv}/bin/pip"],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_a_half_made_environment_is_made_again(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    half = f'{PYTHON} -m venv --without-pip "{venv}"; rm "{venv}"/bin/activate*; exit 1'
    fails = f'case "$*" in *"-m venv"*) {half};; esac\nexec {PYTHON} "$@"'
    failed = make(venv, script(tmp_path / "python-that-fails", fails))
    assert failed.returncode != 0
    assert (venv / "bin" / "python").exists()
    assert make(venv, sys.executable).returncode == 0
    ran = subprocess.run([venv / "bin" / "pip", "--version"], capture_output=True, check=False)
    assert ran.returncode == 0
    assert (venv / "bin" / "activate").exists()


def test_a_python_without_its_venv_package_is_told_by_name(tmp_path: Path) -> None:
    without = f'exec {PYTHON} -c "import sys; sys.modules[\'ensurepip\'] = None; exec(sys.argv[1])" "$2"'
    ran = make(tmp_path / "venv", script(tmp_path / "python", without))
    assert ran.returncode != 0
    assert f"apt install python{sys.version_info.major}.{sys.version_info.minor}-venv" in ran.stderr
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    "file", ["README.md", ".github/CONTRIBUTING.md", ".ci/run", ".pre-commit-config.yaml"]
)
def test_every_make_command_that_is_written_down_has_its_target(file: str) -> None:
    targets = re.findall(r"^(?: *entry: )?make ([a-z-]+)", (ROOT / file).read_text(), re.MULTILINE)
    assert targets
    for target in targets:
        ran = subprocess.run(
            ["make", "--dry-run", target],
            cwd=ROOT,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
def test_a_folder_that_is_no_environment_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    make(tmp_path, sys.executable)
    assert (tmp_path / "mine").read_text() == "mine"
