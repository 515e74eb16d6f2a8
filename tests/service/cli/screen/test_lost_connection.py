"""`screen` with a service whose connections break: what is left is asked for again, and nothing is computed twice."""

import json
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.file_server import FileServer
from tests.golden_requests import manifest
from tests.in_process_service import InProcessService, in_process_service
from tests.postgres import Proxy
from tests.service.cli.command import start_command
from tests.service.cli.screen.models_and_targets import write_json

NUM_PIECES = 300
NUM_TARGETS = 500
"""Lines of 40 KB: more than the buffers of a connection hold together."""


def start(
    service: InProcessService, proxy: Proxy, files: FileServer, folder: Path
) -> "subprocess.Popen[bytes]":
    models = write_json(folder / "models.json", [manifest(files, "good.safetensors", b"good weights")])
    targets = [{"embedding": [1.0] * 16, "distance_threshold": 0.1}] * NUM_TARGETS
    (folder / "pieces.jsonl").write_text("".join(f'{{"text": "piece {i}"}}\n' for i in range(NUM_PIECES)))
    flags = ("--models", models, "--targets", write_json(folder / "targets.json", targets))
    url = ("--url", f"http://127.0.0.1:{proxy.port}")
    return start_command(folder, "screen", *url, *flags, "--data", str(folder / "pieces.jsonl"))


def proxy_of(service: InProcessService) -> Proxy:
    parts = urlsplit(service.http_url)
    assert parts.hostname is not None
    assert parts.port is not None
    return Proxy((parts.hostname, parts.port))


@pytest.mark.slow
def test_what_is_left_is_asked_for_again(tmp_path: Path, files: FileServer) -> None:
    with in_process_service(tmp_path / "data", max_kept_results=1000) as service:
        proxy = proxy_of(service)
        with start(service, proxy, files, tmp_path) as process:
            assert process.stdout is not None
            first = [process.stdout.readline() for _ in range(3)]
            proxy.close()
            proxy.open()
            *rest, last = process.stdout.readlines()
        proxy.close()
        assert process.returncode == 0
        pieces = [json.loads(line)["piece"] for line in (*first, *rest)]
        assert sorted(pieces) == list(range(NUM_PIECES))
        assert json.loads(last)["summary"]["pieces"] == NUM_PIECES
        in_hand = 4 * 16  # of the groups that the cut has ended, and their lines that were on their way
        assert sum(len(job.pieces) for job in service.pool.jobs) <= NUM_PIECES + in_hand


@pytest.mark.slow
def test_a_service_that_stays_away_is_exit_code_3(tmp_path: Path, files: FileServer) -> None:
    with in_process_service(tmp_path / "data") as service:
        proxy = proxy_of(service)
        with start(service, proxy, files, tmp_path) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            process.stdout.readline()
            proxy.close()
            num_lines = len(process.stdout.readlines())
            complaint = process.stderr.read()
        assert process.returncode == 3
        assert num_lines < NUM_PIECES
        assert b"the service did not answer" in complaint
