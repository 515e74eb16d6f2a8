"""Where the APIs listen: warnings of an address that is open to all, and a port that another program has."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.in_process_service import in_process_service

KEYS = (SecretStr("canary"),)
HTTP_WARNING = "HTTP asks for no API key, and listens beyond this machine"
GRPC_WARNING = "gRPC has no authentication: whoever can reach its address may use it"


@pytest.mark.parametrize(
    ("settings", "grpc_host", "warnings"),
    [
        ({}, "127.0.0.1", []),
        ({"host": "0.0.0.0"}, "0.0.0.0", [HTTP_WARNING, GRPC_WARNING]),
        ({"host": "0.0.0.0", "api_keys": KEYS}, "127.0.0.1", []),
        ({"host": "0.0.0.0", "api_keys": KEYS, "grpc_host": "0.0.0.0"}, "0.0.0.0", [GRPC_WARNING]),
    ],
    ids=["this machine", "all", "all with keys", "gRPC beside keys"],
)
def test_an_api_that_is_open_beyond_this_machine_is_warned_of(
    settings: dict[str, Any], grpc_host: str, warnings: list[str], tmp_path: Path
) -> None:
    with capture_logs() as lines, in_process_service(tmp_path, **settings) as service:
        assert service.grpc_url.startswith(f"http://{grpc_host}:")
    assert [line["event"] for line in lines if line["log_level"] == "warning"] == warnings


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A port of loopback that is in use."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize(("setting", "flag"), [("port", "--port"), ("grpc_port", "--grpc-port")])
def test_a_taken_port_is_named_with_its_flag(
    setting: str, flag: str, taken_port: int, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {setting: taken_port}
    service = in_process_service(tmp_path, **settings)
    with pytest.raises(OSError, match=f"port {taken_port}.*{flag}"):
        service.__enter__()


@pytest.mark.slow
def test_a_taken_port_ends_the_command_with_one_line(taken_port: int, tmp_path: Path) -> None:
    flags = ("--port", str(taken_port), "--small-model", "--device", "cpu", "--data-dir", str(tmp_path))
    ran = subprocess.run(
        [sys.executable, "-m", "service.cli.main", "serve", *flags],
        capture_output=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert ran.returncode == 3
    last = ran.stderr.decode().splitlines()[-1]
    assert last.startswith("soma-eval: cannot serve: ")
    assert f"port {taken_port}" in last
