"""Fetching while this machine is really short of something: no publisher is at fault, and the next attempt works."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from service.checksum import checksum_of
from tests import misbehaving_server as servers
from tests.misbehaving_server import MisbehavingServer, random_bytes

pytestmark = pytest.mark.slow

CONTENT = random_bytes(100_000)
OURS = "out-of-resources service True"


async def _outcomes(folder: Path, lack: str, port: int, *before: str) -> list[str]:
    """The outcomes for data by URL and inline data, with the shortage and without it."""
    child = [*before, sys.executable, "-m", "tests.service.download.starved_child"]
    process = await asyncio.create_subprocess_exec(
        *child,
        *(str(folder), lack, str(port), checksum_of(CONTENT)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    out, _ = await process.communicate()
    outcomes: list[str] = json.loads(out)
    return outcomes


@pytest.mark.parametrize(
    ("lack", "expected"),
    [
        ("descriptors-0", [OURS, OURS, "good", "good"]),
        ("descriptors-1", [OURS, "good", "good", "good"]),  # the file is open, and no name can be looked up
        ("threads", [OURS, "good", "good", "good"]),
    ],
)
async def test_a_shortage_of_this_machine_is_no_publishers_fault(
    tmp_path: Path, lack: str, expected: list[str]
) -> None:
    async with MisbehavingServer(servers.honest(CONTENT), tls=False) as server:
        assert await _outcomes(tmp_path, lack, server.port) == expected


@pytest.mark.parametrize("num_left", range(2, 8))
async def test_with_few_descriptors_it_works_or_is_a_service_failure(tmp_path: Path, num_left: int) -> None:
    async with MisbehavingServer(servers.honest(CONTENT), tls=False) as server:
        outcomes = await _outcomes(tmp_path, f"descriptors-{num_left}", server.port)
        assert outcomes[0] in (OURS, "good")
        assert outcomes[1:] == ["good"] * 3


async def test_without_ports_no_publisher_is_at_fault(tmp_path: Path) -> None:
    unshare = ["unshare", "--net"]
    try:
        subprocess.run([*unshare, "true"], check=True, capture_output=True)  # noqa: ASYNC221
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a network namespace needs more rights than these")
    assert await _outcomes(tmp_path, "ports", 0, *unshare) == [OURS, "good", "good", "good"]
