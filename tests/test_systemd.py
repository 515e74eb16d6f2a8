"""docker/soma-eval.service: systemd reads it, its settings are settings, and it leaves time to drain."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from service.config import Settings
from service.environment import PREFIX

UNIT = Path(__file__).parents[1] / "docker" / "soma-eval.service"

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here"
)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit, with a command that exists here."""
    command = Path(sys.executable).with_name("soma-eval")
    unit = tmp_path / UNIT.name
    unit.write_text(re.sub(r"(?<=^ExecStart=)\S+", str(command), UNIT.read_text(), flags=re.MULTILINE))
    return unit


def value(name: str) -> str:
    (found,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)
    return str(found)


@needs_systemd
def test_systemd_finds_nothing_wrong(installed: Path) -> None:
    done = subprocess.run(["systemd-analyze", "verify", str(installed)], capture_output=True, text=True)
    about_it = [line for line in done.stderr.splitlines() if "soma-eval" in line]
    assert (done.returncode, about_it) == (0, []), done.stderr


@needs_systemd
def test_systemd_calls_it_confined(installed: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=25", str(installed)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr


def test_what_is_set_is_a_setting() -> None:
    names = set(re.findall(rf"^Environment=({PREFIX}\w+)=", UNIT.read_text(), re.MULTILINE))
    assert names
    assert names <= {PREFIX + name.upper() for name in Settings.model_fields}


def test_the_service_ends_its_work_before_it_is_killed() -> None:
    assert int(value("TimeoutStopSec")) > Settings.model_fields["drain_timeout_seconds"].default + 20
    assert value("KillMode") == "mixed"


def test_the_data_folder_is_the_one_that_systemd_makes() -> None:
    assert f"SOMA_EVAL_DATA_DIR=/var/cache/{value('CacheDirectory')}" in UNIT.read_text()
