"""The HTTP door itself: shapes, limits, keys, operations, long work; and that it never tells a secret."""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import base58
import httpx
import psutil
import pytest

from service import errors
from service.config import Settings
from service.http_api import STATUS_OF
from service.http_gate import MAX_BODIES_AT_ONCE
from service.http_protocol import HEAD_SECONDS
from tests.file_server import FileServer
from tests.live_service import LiveService, live_service
from tests.service.test_eval import GOLDEN, KEY, assert_golden, assert_problem, plain, sealed

__all__ = ["plain", "sealed"]


JSON = {"content-type": "application/json"}


def every_error() -> list[type[errors.ScoringError]]:
    """All classes a caller can see: the leaves of the tree, and those inner ones with a code of their own."""
    found, todo = [], [errors.ScoringError]
    while todo:
        cls = todo.pop()
        todo += cls.__subclasses__()
        if "code" in vars(cls):
            found.append(cls)
    return found


def test_every_error_has_a_status() -> None:
    assert set(STATUS_OF) == set(every_error())


def test_only_trouble_is_retryable() -> None:
    retryable = {cls.code for cls in every_error() if cls.retryable}
    assert retryable == {
        *("{blob}-unavailable", "download-timeout", "queue-full", "draining", "no-worker"),
        *("deadline-exceeded", "worker-crashed", "out-of-memory", "out-of-resources"),
        "insufficient-storage",
    }


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'{"seed": NaN}', b'{"weights_url": Infinity}', b"\xff\xfe", b"[" * 100_000],
    ids=["no body", "half", "a list", "null", "NaN", "Infinity", "not UTF-8", "deep"],
)
def test_a_body_that_is_no_request(body: bytes, client: httpx.Client) -> None:
    response = client.post("/eval", content=body, headers=JSON)
    assert_problem(response, "invalid-request")


def test_nan_in_the_target_is_no_server_error(client: httpx.Client, plain: dict[str, Any]) -> None:
    body = json.dumps({**plain, "target_embedding": [float("nan")] * 16})
    problem = assert_problem(client.post("/eval", content=body, headers=JSON), "invalid-request")
    assert "finite" in problem["detail"]


def test_routes_and_methods_that_do_not_exist(client: httpx.Client) -> None:
    assert_problem(client.get("/nothing"), "not-found")
    assert_problem(client.put("/eval"), "method-not-allowed")
    assert_problem(client.get("/jobs/unknown"), "job-not-found")


def test_a_body_over_the_limit_with_a_length(client: httpx.Client) -> None:
    assert_problem(client.post("/eval", content=bytes(8 << 20)), "body-too-large")


def test_a_body_over_the_limit_without_a_length(client: httpx.Client) -> None:
    chunks = (bytes(1 << 20) for _ in range(8))
    try:
        assert_problem(client.post("/eval", content=chunks), "body-too-large")
    except (httpx.WriteError, httpx.ReadError):  # the server may hang up on what it will not read
        assert client.get("/health").status_code == 200


def connect(service: LiveService, seconds: float = 30.0) -> socket.socket:
    """A bare connection; what is read from it or written to it may take so long."""
    host, port = service.http_url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=seconds)


def wait_until(happens: Callable[[], bool], seconds: float = 15.0) -> None:
    """Ask again and again; fails after so many seconds."""
    end = time.monotonic() + seconds
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.05)


def read_to_the_end(connection: socket.socket) -> bytes:
    """What the server says until it closes; a reset is an end too."""
    said = b""
    try:
        while block := connection.recv(1 << 16):
            said += block
    except ConnectionError:
        pass
    return said


LARGEST_BODY = Settings().max_body_bytes


def test_a_body_that_nobody_asked_for_is_not_waited_for(service: LiveService) -> None:
    with connect(service) as connection:
        connection.sendall(b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5000000\r\n\r\nA")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 405")


def test_bodies_on_their_way_hold_bounded_memory(service: LiveService, client: httpx.Client) -> None:
    head = f"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Length: {LARGEST_BODY}\r\n\r\n".encode()
    with contextlib.ExitStack() as held:
        held.callback(lambda: wait_until(lambda: client.post("/eval", content=b"{").status_code == 422))
        for _ in range(MAX_BODIES_AT_ONCE):
            held.enter_context(connect(service)).sendall(head + b" " * (LARGEST_BODY - 1))

        def refused() -> bool:
            response = client.post("/eval", content=b" " * 64, headers=JSON)
            if response.status_code == 422:
                return False
            assert_problem(response, "queue-full")
            return bool(response.headers["retry-after"])

        wait_until(refused)


HEADERS_WITHOUT_END = b"".join(b"x-%d: %d\r\n" % (n, n) for n in range(2_000_000))


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET /health HTTP/1.1\r\n",
        b"GET /" + b"x" * (32 << 20),
        b"GET /health HTTP/1.1\r\nx: " + b"x" * (32 << 20),
        b"POST /eval HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n",
    ],
    ids=["headers", "a target", "one header", "trailers"],
)
def test_a_request_without_end_is_cut_off(
    beginning: bytes, service: LiveService, client: httpx.Client
) -> None:
    with (
        connect(service) as connection,
        pytest.raises(OSError, match=r"(?i)reset|broken pipe"),
    ):
        connection.sendall(beginning + HEADERS_WITHOUT_END)
    assert client.get("/health").status_code == 200


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"], ids=["first", "later"])
def test_a_head_that_is_not_finished_is_given_up(before: bytes, service: LiveService) -> None:
    with connect(service, HEAD_SECONDS + 10) as connection:
        connection.sendall(before + b"\r\n")
        time.sleep(1.0 if before else 0.0)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost:")
        assert read_to_the_end(connection).count(b"HTTP/1.1 200") == bool(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may list the service's open files")
def test_clients_that_never_finish_a_head_leave_room_for_others(tmp_path: Path) -> None:
    with live_service(tmp_path, max_open_files=256) as running, contextlib.ExitStack() as held:
        for _ in range(300):
            connection = held.enter_context(connect(running))
            with contextlib.suppress(ConnectionError):  # it may be one too many
                connection.sendall(b"GET /health HTTP/1.1\r\nHost:")
        process = psutil.Process(running.process.pid)
        wait_until(lambda: len(process.net_connections("tcp")) < 140, HEAD_SECONDS - 5)
        wait_until(lambda: answers(running), HEAD_SECONDS + 10)
        assert running.output().count("too many connections") <= 3


def answers(service: LiveService) -> bool:
    try:
        with service.client() as client:
            return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def test_a_body_in_chunks_of_a_byte(client: httpx.Client, plain: dict[str, Any]) -> None:
    text = json.dumps(plain).encode() + b" " * 50_000
    response = client.post("/eval", content=(text[i : i + 1] for i in range(len(text))), headers=JSON)
    assert_golden(response.json())


def test_each_phase_of_an_evaluation_is_timed(client: httpx.Client, plain: dict[str, Any]) -> None:
    assert client.post("/eval", json=plain).status_code == 200
    text = client.get("/metrics").text
    for phase in ("queue", "download", "load", "eval"):
        assert f'soma_eval_phase_seconds_bucket{{le="+Inf",phase="{phase}"}}' in text


def test_operations(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
    info = client.get("/info").json()
    assert info["architecture"]["embedding_dim"] == 16
    assert info["limits"]["max_data_bytes"] == 1 << 20
    assert "soma_eval_workers_ready 1.0" in client.get("/metrics").text
    assert {"/eval", "/score", "/jobs/{job_id}"} <= set(client.get("/openapi.json").json()["paths"])


@pytest.mark.parametrize("path", ["/health", "/ready", "/info", "/metrics"])
def test_head_is_get_without_a_body(path: str, client: httpx.Client) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == get.headers["content-type"]


def test_what_is_not_http_is_told_in_the_one_shape(service: LiveService) -> None:
    with connect(service) as connection:
        connection.sendall(b"no request at all\r\n\r\n")
        head, _, body = read_to_the_end(connection).partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    assert status == "HTTP/1.1 400 Bad Request"
    headers = dict(line.split(": ") for line in lines)
    assert_problem(httpx.Response(400, headers=headers, content=body), "invalid-request")


def test_docs_load_nothing_from_another_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    references = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert any(reference.endswith(".js") for reference in references)
    for reference in references:
        assert client.get(reference).status_code == 200, reference


def test_long_work_ends_with_the_same_answer(client: httpx.Client, sealed: dict[str, Any]) -> None:
    accepted = client.post("/eval", json=sealed, headers={"Prefer": "respond-async"})
    assert accepted.status_code == 202
    location = accepted.headers["location"]
    with client.stream("GET", f"{location}/events") as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        events = [line.removeprefix("event: ") for line in stream.iter_lines() if line.startswith("event: ")]
    assert events[-1] == "succeeded"
    job = client.get(location).json()
    assert (job["state"], job["kind"]) == ("succeeded", "eval")
    assert_golden(job["result"])


def test_long_work_is_asked_for_on_any_line(client: httpx.Client, plain: dict[str, Any]) -> None:
    accepted = client.post("/eval", json=plain, headers=[("Prefer", "wait=5"), ("Prefer", "respond-async")])
    assert accepted.status_code == 202
    client.delete(accepted.headers["location"])


def test_long_work_that_fails_tells_why(client: httpx.Client, plain: dict[str, Any]) -> None:
    body = {**plain, "decryption_key": KEY}
    location = client.post("/eval", json=body, headers={"Prefer": "respond-async"}).headers["location"]
    with client.stream("GET", f"{location}/events") as stream:
        assert "event: failed" in list(stream.iter_lines())
    job = client.get(location).json()
    assert (job["state"], job["error"]["code"], job["result"]) == ("failed", "decryption-failed", None)


@pytest.fixture
def endless_server() -> Any:
    """Answers a download's head, and then nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/weights"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()


def test_long_work_can_be_cancelled(client: httpx.Client, plain: dict[str, Any], endless_server: str) -> None:
    body = {**plain, "weights_url": endless_server, "weights_checksum": None}
    location = client.post("/eval", json=body, headers={"Prefer": "respond-async"}).headers["location"]
    assert client.get(location).json()["state"] == "queued"
    assert client.delete(location).json()["state"] == "cancelled"
    assert "soma_eval_requests_admitted 0.0" in client.get("/metrics").text


def test_a_client_that_leaves_gives_its_place_back_and_is_no_error(
    service: LiveService, client: httpx.Client, plain: dict[str, Any], endless_server: str
) -> None:
    left = 'method="POST /eval",outcome="client-left"'
    before = count_of(left, client)
    body = {**plain, "weights_url": endless_server, "weights_checksum": None}
    with service.client() as leaving, pytest.raises(httpx.ReadTimeout):
        leaving.post("/eval", json=body, timeout=0.5)
    wait_until(lambda: "soma_eval_requests_admitted 0.0" in client.get("/metrics").text)
    assert count_of(left, client) == before + 1
    assert "Traceback" not in service.output()


def test_a_client_that_leaves_within_its_body_is_no_error(service: LiveService, client: httpx.Client) -> None:
    left = 'method="unknown route",outcome="client-left"'
    before = count_of(left, client)
    with connect(service) as connection:
        connection.sendall(b"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        time.sleep(0.2)
    wait_until(lambda: count_of(left, client) == before + 1)


def test_two_requests_at_once_do_not_hide_that_the_client_has_left(
    service: LiveService, client: httpx.Client, plain: dict[str, Any], endless_server: str
) -> None:
    body = json.dumps({**plain, "weights_url": endless_server, "weights_checksum": None}).encode()
    head = f"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    with connect(service) as connection:
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_until(lambda: "soma_eval_requests_admitted 1.0" in client.get("/metrics").text)
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        wait_until(lambda: "soma_eval_requests_admitted 0.0" in client.get("/metrics").text, 5.0)
        assert read_to_the_end(connection) == b""
    with connect(service) as connection:
        connection.sendall(2 * (head.encode() + b"\r\n\r\n" + body))
        assert read_to_the_end(connection) == b""
    wait_until(lambda: "soma_eval_requests_admitted 0.0" in client.get("/metrics").text, 5.0)


def count_of(labels: str, client: httpx.Client) -> float:
    """Of the requests with these labels, over HTTP."""
    line = re.escape(f'soma_eval_requests_total{{door="http",{labels}}} ')
    found = re.search(rf"{line}(\S+)", client.get("/metrics").text)
    return float(found[1]) if found else 0.0


CANARY_KEY = base58.b58encode(b"canary-decryption-key-canary-key").decode()
CANARY_API_KEY = "canary-api-key-4711"
CANARY_QUERY = "canary-query-token-0815"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service that asks for an API key, keeps two requests and logs all it can."""
    with live_service(
        tmp_path_factory.mktemp("guarded"),
        *("--queue-size", "2", "--log-level", "debug", "--log-format", "json"),
        environment={"SOMA_EVAL_API_KEYS": CANARY_API_KEY},
    ) as running:
        yield running


def test_api_key(guarded: LiveService) -> None:
    with guarded.client() as client:
        for path in ("/health", "/ready", "/metrics"):
            assert client.get(path).status_code == 200
        for authorization in (
            "",
            "Bearer",
            "Bearer wrong",
            f"Basic {CANARY_API_KEY}",
            f"Bearer {CANARY_API_KEY}x",
        ):
            response = client.get("/info", headers={"Authorization": authorization})
            assert_problem(response, "unauthorized")
            assert response.status_code == 401
        assert client.get("/info", headers={"Authorization": f"Bearer {CANARY_API_KEY}"}).status_code == 200


def test_an_open_grpc_door_beside_api_keys_is_warned_of(tmp_path: Path, guarded: LiveService) -> None:
    warning = "gRPC asks for no API key"
    keys = {"SOMA_EVAL_API_KEYS": CANARY_API_KEY}
    with live_service(tmp_path / "open", "--host", "0.0.0.0", environment=keys) as running:
        assert warning in running.output()
    assert warning not in guarded.output()  # it listens on loopback


def test_a_full_queue_is_told_at_once(
    guarded: LiveService, plain: dict[str, Any], endless_server: str
) -> None:
    body = {**plain, "weights_url": endless_server, "weights_checksum": None}
    headers = {"Authorization": f"Bearer {CANARY_API_KEY}", "Prefer": "respond-async"}
    with guarded.client(headers=headers) as client:
        jobs = [client.post("/eval", json=body).headers["location"] for _ in range(2)]
        for prefer in ("respond-async", "wait"):
            refused = client.post("/eval", json=body, headers={"Prefer": prefer})
            assert_problem(refused, "queue-full")
            assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)
        for job in jobs:
            client.delete(job)


def test_no_secret_is_ever_told(guarded: LiveService, plain: dict[str, Any], files: FileServer) -> None:
    bodies: list[dict[str, Any]] = [
        {**plain, "decryption_key": CANARY_KEY},
        {**plain, "decryption_key": CANARY_KEY + "0"},
        {**plain, "decryption_key": [CANARY_KEY]},
        {**plain, "decryption_key": CANARY_KEY, "seed": CANARY_KEY},
        {**plain, CANARY_KEY: 1},
        {**plain, "weights_url": f"{files.base_url}/absent?token={CANARY_QUERY}"},
        {**plain, "weights_url": f"https://{CANARY_QUERY}:x@localhost/w"},
        {**plain, "weights_url": f"{plain['weights_url']}?token={CANARY_QUERY}", "weights_checksum": None},
        {**plain, "weights_url": f"gopher://{CANARY_QUERY}"},
        {**plain, "data": CANARY_KEY + "!"},
    ]
    told = []
    with guarded.client(headers={"Authorization": f"Bearer {CANARY_API_KEY}"}) as client:
        for body in bodies:
            waited = client.post("/eval", json=body)
            assert waited.status_code in (200, 422, 502)
            job = client.post("/eval", json=body, headers={"Prefer": "respond-async"})
            assert job.status_code in (202, 422)
            told += [waited.text, job.text]
            if job.status_code == 202:
                told.append(client.get(f"{job.headers['location']}/events").text)  # to the job's end
                told.append(client.get(job.headers["location"]).text)
        told.append(client.get("/metrics").text)
        told.append(client.get("/info").text)
    command_lines = [
        path.read_bytes().decode(errors="replace") for path in Path("/proc").glob("[0-9]*/cmdline")
    ]
    for text in [*told, *command_lines, guarded.output()]:
        for secret in (CANARY_KEY, CANARY_API_KEY, CANARY_QUERY):
            assert secret not in text


def test_sigterm_ends_it_cleanly(tmp_path: Path, plain: dict[str, Any]) -> None:
    with live_service(tmp_path / "ending") as ending:
        with ending.client() as client:
            assert client.post("/eval", json=plain).json()["loss"] == pytest.approx(GOLDEN.loss, rel=1e-5)
        assert ending.stop() == 0
        assert not [name for name in ending.blobs() if "part" in name]
