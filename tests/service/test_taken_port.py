"""A port that another program has is named, and so is the flag that chooses another."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(("flag", "other"), [("--port", "--grpc-port"), ("--grpc-port", "--port")])
def test_a_taken_port_is_told_with_its_flag(tmp_path: Path, flag: str, other: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = (flag, str(port), other, "0", "--small-model", "--device", "cpu", "--data-dir", str(tmp_path))
        ran = subprocess.run(
            [sys.executable, "-m", "service.cli.main", "serve", *flags],
            capture_output=True,
            cwd=Path(__file__).parents[2],
            check=False,
        )
    assert ran.returncode == 3
    last = ran.stderr.decode().splitlines()[-1]
    assert last.startswith("soma-eval: cannot serve: ")
    assert f"port {port}" in last
    assert flag in last
