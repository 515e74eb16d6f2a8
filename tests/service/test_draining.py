"""SIGTERM under load: not ready at once, new work is refused, running work finishes or is cancelled, exit code 0."""

import base64
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.exec_prepared import Inherited, prepared
from tests.file_server import FileServer
from tests.golden_requests import request_for
from tests.live_service import SMALL_AND_LOCAL, LiveService, live_service
from tests.problems import assert_problem
from tests.recipe import golden_cases, make_data, small_weights_bytes
from tests.sockets import wait_until
from workers.processes.worker_process import ENTRY_MODULE

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
                self.response = client.post("/eval", json=self._body, timeout=600.0)
            except httpx.TransportError:
                return


def wait_until_evaluating(client: httpx.Client) -> None:
    wait_until(lambda: "soma_eval_workers_busy 1.0" in client.get("/metrics").text)


LONG_DRAIN = ("--drain-timeout-seconds", "600")


@pytest.mark.slow
def test_running_work_finishes(tmp_path: Path, long_work: dict[str, Any]) -> None:
    data = make_data({**GOLDEN.data, "size": 128 << 10})
    work = {**long_work, "data": base64.b64encode(data).decode()}
    with live_service(tmp_path, *LONG_DRAIN) as service, service.client() as client:
        posting = Posting(service, work)
        wait_until_evaluating(client)
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: client.get("/ready").status_code == 503)
        ready = client.get("/ready")
        assert ready.headers["content-type"] == "application/problem+json"
        assert ready.headers["retry-after"]
        problem = ready.json()
        assert (problem["code"], problem["status"], problem["fault"]) == ("draining", 503, "service")
        assert (problem["retryable"], len(problem["devices"])) == (True, 1)
        refused = client.post("/eval", json=work)
        assert_problem(refused, "draining")
        assert refused.headers["retry-after"]
        posting.join(240)
        assert posting.response is not None
        assert posting.response.status_code == 200, posting.response.text
        assert posting.response.json()["num_batches"] == 8
        assert service.process.wait(60) == 0


@pytest.mark.slow
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
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
        assert not [name for name in service.blobs() if name.endswith(".part")]


@pytest.mark.slow
@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_running_work_and_downloads(
    tmp_path: Path, long_work: dict[str, Any], second: signal.Signals
) -> None:
    with (
        silent_publisher() as url,
        live_service(tmp_path, *LONG_DRAIN, "--download-base-timeout-seconds", "600") as service,
        service.client() as client,
    ):
        workers = psutil.Process(service.process.pid).children(recursive=True)
        posting = Posting(service, long_work)
        Posting(service, {**long_work, "weights_url": url, "weights_checksum": None, "weights_size": None})
        wait_until_evaluating(client)
        wait_until(lambda: any(name.endswith(".part") for name in service.blobs()))
        service.process.send_signal(signal.SIGTERM)
        wait_until(lambda: "draining" in service.output())
        service.process.send_signal(second)
        assert service.process.wait(60) == 128 + second
        posting.join(60)
        assert posting.response is None or posting.response.json()["code"] == "draining"
        assert "Traceback" not in service.output()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
        assert not [name for name in service.blobs() if name.endswith(".part")]


@contextmanager
def silent_publisher() -> Iterator[str]:
    """A server that sends the beginning of a file, and then nothing more."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                held.append(connection)
                connection.recv(1 << 16)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n" + bytes(1000))

        held: list[socket.socket] = []
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/weights"
        finally:
            for connection in held:
                connection.close()


@pytest.mark.slow
def test_a_second_signal_is_heard_while_connections_are_closed(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        port = httpx.URL(service.http_url).port
        with socket.create_connection(("127.0.0.1", port)) as unfinished:
            unfinished.sendall(
                b"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n{"
            )
            assert b"100 Continue" in unfinished.recv(1 << 16)
            service.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "draining" in service.output())
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(60) == 128 + signal.SIGTERM
        assert "Traceback" not in service.output()


HANGING_START = """
import pathlib, sys, time
import workers.processes.devices

def hang():
    pathlib.Path({hangs!r}).touch()
    time.sleep(600)

workers.processes.devices.count_gpus = hang
from service.cli.main import main
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_ends_while_a_driver_hangs(tmp_path: Path, number: signal.Signals) -> None:
    hangs = tmp_path / "hangs"
    command = ("serve", "--port", "0", "--grpc-port", "0", "--data-dir", str(tmp_path / "data"))
    process = subprocess.Popen(
        prepared(
            [sys.executable, "-c", HANGING_START.format(hangs=str(hangs)), *command],
            Inherited(ignores_ctrl_c=False),
        )
    )
    try:
        wait_until(hangs.exists)
        process.send_signal(number)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    return [child for child in process.children(recursive=True) if ENTRY_MODULE in command_line(child)]


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:  # it has ended
        return []


@pytest.mark.slow
def test_a_start_ends_at_once_too(tmp_path: Path) -> None:
    service = LiveService(tmp_path, *SMALL_AND_LOCAL)
    try:
        process = psutil.Process(service.process.pid)
        wait_until(lambda: bool(workers_of(process)))  # others ask a question and end
        workers = workers_of(process)
        workers[0].suspend()  # so it never becomes ready
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(60) == 0
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
        assert "Traceback" not in service.output()
    finally:
        service.stop()


@pytest.mark.slow
def test_killed_outright_it_takes_its_workers_along(tmp_path: Path) -> None:
    with live_service(tmp_path) as service:
        workers = psutil.Process(service.process.pid).children(recursive=True)
        assert workers
        os.kill(service.process.pid, signal.SIGKILL)
        service.process.wait()
        _, alive = psutil.wait_procs(workers, timeout=60)
        assert not alive
