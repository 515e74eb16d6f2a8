"""SIGTERM under load: not ready at once, nothing new, running work finishes or is stopped at the limit, exit 0."""

import base64
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.file_server import FileServer
from tests.live_service import SMALL_AND_LOCAL, LiveService, live_service
from tests.recipe import golden_cases, make_data, small_weights_bytes
from tests.service.test_eval import assert_problem, request_for

GOLDEN = golden_cases()["small-1-mib"]


@pytest.fixture(scope="module")
def long_work(files: FileServer) -> dict[str, Any]:
    """A request that takes some seconds."""
    body = request_for(files, "long.safetensors", small_weights_bytes(GOLDEN.weights))
    return {**body, "data": base64.b64encode(make_data(GOLDEN.data)).decode(), "seed": GOLDEN.seed}


class Posting(threading.Thread):
    """One client that waits for its answer."""

    def __init__(self, service: LiveService, body: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._service, self._body = service, body
        self.response: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        with self._service.client() as client:
            try:
                self.response = client.post("/eval", json=self._body, timeout=240.0)
            except httpx.TransportError:
                return


def wait_until_evaluating(client: httpx.Client) -> None:
    end = time.monotonic() + 60
    while "soma_eval_workers_busy 1.0" not in client.get("/metrics").text:
        assert time.monotonic() < end
        time.sleep(0.02)


def test_running_work_finishes(tmp_path: Path, long_work: dict[str, Any]) -> None:
    with live_service(tmp_path, "--drain-timeout-seconds", "200") as service, service.client() as client:
        posting = Posting(service, long_work)
        wait_until_evaluating(client)
        service.process.send_signal(signal.SIGTERM)
        end = time.monotonic() + 10
        while client.get("/ready").status_code != 503:
            assert time.monotonic() < end
        ready = client.get("/ready")
        assert ready.headers["content-type"] == "application/problem+json"
        assert ready.headers["retry-after"]
        problem = ready.json()
        assert (problem["code"], problem["status"], problem["fault"]) == ("draining", 503, "service")
        assert (problem["retryable"], len(problem["devices"])) == (True, 1)
        refused = client.post("/eval", json=long_work)
        assert_problem(refused, "draining")
        assert refused.headers["retry-after"]
        posting.join(240)
        assert posting.response is not None
        assert posting.response.status_code == 200, posting.response.text
        assert posting.response.json()["loss"] == pytest.approx(GOLDEN.loss, rel=1e-5)
        assert service.process.wait(60) == 0


def test_work_past_the_limit_is_stopped(tmp_path: Path, long_work: dict[str, Any]) -> None:
    with live_service(tmp_path, "--drain-timeout-seconds", "0.1") as service, service.client() as client:
        workers = psutil.Process(service.process.pid).children(recursive=True)
        posting = Posting(service, long_work)
        wait_until_evaluating(client)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
        posting.join(60)
        assert posting.response is not None
        assert_problem(posting.response, "draining")
        assert posting.response.headers["retry-after"]
        assert "Traceback" not in service.output()
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        assert not [name for name in service.blobs() if name.endswith(".part")]


def test_a_start_ends_at_once_too(tmp_path: Path) -> None:
    service = LiveService(tmp_path, *SMALL_AND_LOCAL)
    try:
        end = time.monotonic() + 60
        while not (workers := psutil.Process(service.process.pid).children(recursive=True)):
            assert time.monotonic() < end
            time.sleep(0.02)
        workers[0].suspend()  # it will not be ready before it is given up and another is
        time.sleep(1.0)
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(10) == 0
        _, alive = psutil.wait_procs(workers, timeout=10)
        assert not alive
        assert "Traceback" not in service.output()
    finally:
        service.stop()


def test_killed_outright_it_takes_its_workers_along(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        workers = psutil.Process(service.process.pid).children(recursive=True)
        assert workers
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert not alive
