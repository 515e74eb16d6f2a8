"""docker/compose.yaml passes settings on, and none that is not set."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]

from service.config import Settings
from service.environment import PREFIX

COMPOSE = Path(__file__).parents[1] / "docker" / "compose.yaml"


@pytest.fixture(params=["cpu", "cuda", "head"])
def declared(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One of its services."""
    service: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"][request.param]
    return service


def test_every_setting_can_be_given_in_a_file(declared: dict[str, Any]) -> None:
    assert declared["env_file"] == [{"path": ".env", "required": False}]


def test_nothing_is_passed_as_an_empty_text(declared: dict[str, Any]) -> None:
    values = [str(value) for value in declared["environment"].values() if value is not None]
    assert [value for value in values if not value or re.search(r":?-\}", value)] == []
    assert declared["environment"]["SOMA_EVAL_API_KEYS"] is None


def test_what_is_passed_is_a_setting(declared: dict[str, Any]) -> None:
    of_ray = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN"}
    assert set(declared["environment"]) - of_ray <= {PREFIX + name.upper() for name in Settings.model_fields}


def test_a_cluster_has_a_token() -> None:
    services = yaml.safe_load(COMPOSE.read_text())["services"]
    for name in ("head", "node"):
        environment = services[name]["environment"]
        assert (environment["RAY_AUTH_MODE"], environment["RAY_AUTH_TOKEN"]) == ("token", None)


def _has_compose() -> bool:
    return (
        bool(shutil.which("docker"))
        and not subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not _has_compose(), reason="there is no docker compose here")
@pytest.mark.parametrize("from_shell", [True, False], ids=["shell", "file"])
def test_what_compose_makes_of_it(from_shell: bool, tmp_path: Path) -> None:
    shutil.copy(COMPOSE, tmp_path)
    (tmp_path / ".env").write_text(
        "SOMA_EVAL_QUEUE_SIZE=7\n" + ("" if from_shell else "SOMA_EVAL_API_KEYS=from-file\n")
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    shell = {"SOMA_EVAL_API_KEYS": "from-shell"} if from_shell else {}
    command = ["docker", "compose", "--file", str(tmp_path / "compose.yaml"), "--profile", "cpu", "config"]
    done = subprocess.run(command, env=kept | shell, capture_output=True, text=True, check=True)
    environment = yaml.safe_load(done.stdout)["services"]["cpu"]["environment"]
    assert environment["SOMA_EVAL_QUEUE_SIZE"] == "7"
    assert environment["SOMA_EVAL_API_KEYS"] == ("from-shell" if from_shell else "from-file")
    assert environment.get("SOMA_EVAL_DRAIN_TIMEOUT_SECONDS") is None
