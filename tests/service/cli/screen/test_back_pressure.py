"""`screen` with a service: whoever stops reading its lines stops the work, and whoever leaves ends it."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.file_server import FileServer
from tests.golden_requests import manifest
from tests.in_process_service import InProcessService, in_process_service
from tests.service.cli.command import start_command
from tests.service.cli.screen.models_and_targets import write_json
from tests.sockets import wait_until

NUM_PIECES = 1500
NUM_TARGETS = 500
"""Lines of 40 KB: a few dozen fill the pipe and the buffers of the connection."""


@contextmanager
def screening(
    service: InProcessService, files: FileServer, folder: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """The command, whose lines nobody reads yet."""
    published = manifest(files, "good.safetensors", b"good weights")
    models = write_json(folder / "models.json", [published])
    targets = [{"embedding": [1.0] * 16, "distance_threshold": 0.1}] * NUM_TARGETS
    pieces = folder / "pieces.jsonl"
    pieces.write_text("".join(f'{{"text": "piece {i}"}}\n' for i in range(NUM_PIECES)))
    flags = ("--models", models, "--targets", write_json(folder / "targets.json", targets))
    command = ("screen", "--url", service.http_url, *flags, "--data", str(pieces))
    with start_command(folder, *command) as process:
        try:
            wait_until(lambda: len(service.pool.jobs) > 0)
            yield process
        finally:
            process.kill()


def num_screened(service: InProcessService) -> int:
    return sum(len(job.pieces) for job in service.pool.jobs)


def is_idle(service: InProcessService) -> bool:
    with service.client() as client:
        return "requests_admitted 0.0" in client.get("/metrics").text


@pytest.mark.slow
def test_a_reader_that_stops_reading_stops_the_work(tmp_path: Path, files: FileServer) -> None:
    with (
        in_process_service(tmp_path / "data") as service,
        screening(service, files, tmp_path) as process,
    ):
        before = -1
        while before != num_screened(service):  # until nothing moves any more
            before = num_screened(service)
            time.sleep(1.0)
        assert before < NUM_PIECES / 2
        assert not is_idle(service)
        assert process.stdout is not None
        for _ in range(NUM_PIECES // 2):
            process.stdout.readline()
        assert num_screened(service) > before  # it goes on once it is read


@pytest.mark.slow
@pytest.mark.parametrize("how", ["its output is closed", "it is killed", "it is interrupted"])
def test_leaving_ends_the_work(how: str, tmp_path: Path, files: FileServer) -> None:
    with (
        in_process_service(tmp_path / "data") as service,
        screening(service, files, tmp_path) as process,
    ):
        assert process.stdout is not None
        match how:
            case "its output is closed":
                process.stdout.close()
            case "it is killed":
                process.kill()
            case "it is interrupted":
                os.kill(process.pid, signal.SIGINT)
        assert process.wait(60.0) != 0
        wait_until(lambda: is_idle(service))
        assert num_screened(service) < NUM_PIECES
