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
from pydantic import ValidationError

from service import errors
from service.config import Settings
from service.http_api.problems import STATUS_OF
from service.http_api.protocol import HttpLimits
from service.http_api.request_body import MAX_BODIES_AT_ONCE, MAX_VALUES
from service.http_api.requests import ScoreRequest
from service.scoring.competition import MAX_MANIFESTS
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_EVALUATION as GOLDEN
from tests.golden_requests import KEY, assert_golden
from tests.live_service import LiveService, live_service
from tests.problems import assert_problem

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


@pytest.mark.parametrize(
    ("headers", "named"),
    [
        ({}, "Content-Type"),
        ({"content-type": "text/plain"}, "Content-Type"),
        ({**JSON, "content-encoding": "gzip"}, "Content-Encoding"),
    ],
    ids=["no type", "text", "gzip"],
)
def test_a_header_that_is_wrong_is_named(
    headers: dict[str, str], named: str, client: httpx.Client, plain: dict[str, Any]
) -> None:
    problem = assert_problem(
        client.post("/eval", content=json.dumps(plain), headers=headers), "invalid-request"
    )
    assert named in problem["detail"]


def test_routes_and_methods_that_do_not_exist(client: httpx.Client) -> None:
    assert_problem(client.get("/nothing"), "not-found")
    assert_problem(client.post("/eval/"), "not-found")
    assert_problem(client.put("/eval"), "method-not-allowed")
    assert_problem(client.get("/jobs/unknown"), "job-not-found")


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/jobs/x", "DELETE, GET"), ("/eval", "POST"), ("/health", "GET, HEAD"), ("/openapi.json", "GET, HEAD")],
)
def test_a_refused_method_is_told_all_that_are_allowed(path: str, allowed: str, client: httpx.Client) -> None:
    response = client.put(path)
    assert_problem(response, "method-not-allowed")
    assert response.headers["allow"] == allowed


def test_a_host_that_is_no_host(service: LiveService) -> None:
    with connect(service) as connection:
        connection.sendall(b"GET /nothing HTTP/1.1\r\nHost: [\r\nConnection: close\r\n\r\n")
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 404")


def test_a_request_is_logged_with_its_route_and_a_plain_status(
    service: LiveService, client: httpx.Client
) -> None:
    client.post("/eval", content=bytes(8 << 20), headers=JSON)
    client.put("/jobs/some-job")
    wait_until(lambda: "PUT /jobs/{job_id}" in service.output())
    lines = {line for line in service.output().splitlines() if " request " in line}
    assert any("'POST /eval' outcome=body-too-large" in line and "status=413" in line for line in lines)
    assert "HTTPStatus" not in service.output()


def test_a_body_over_the_limit_with_a_length(client: httpx.Client) -> None:
    assert_problem(client.post("/eval", content=bytes(8 << 20), headers=JSON), "body-too-large")


def test_a_body_over_the_limit_without_a_length(client: httpx.Client) -> None:
    chunks = (bytes(1 << 20) for _ in range(8))
    try:
        assert_problem(client.post("/eval", content=chunks, headers=JSON), "body-too-large")
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


def test_stalled_bodies_give_way_to_others(service: LiveService, client: httpx.Client) -> None:
    head = (
        "POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {LARGEST_BODY}\r\n\r\n"
    )
    with contextlib.ExitStack() as held:
        stalled = [held.enter_context(connect(service)) for _ in range(MAX_BODIES_AT_ONCE + 1)]
        for connection in stalled:
            connection.sendall(head.encode() + b" " * (LARGEST_BODY - 1))
        for _ in range(3):
            assert_problem(client.post("/eval", content=b" " * LARGEST_BODY, headers=JSON), "invalid-request")
        refusal = stalled[0].recv(1 << 16)  # the first to come has held its memory the longest
        assert refusal.startswith(b"HTTP/1.1 429")
        assert b"retry-after" in refusal
        assert b"queue-full" in refusal


@pytest.mark.parametrize("length", [b"0" * 5000 + b"2", b"9" * 19, b"9" * 5000], ids=["zeros", "19", "5000"])
def test_a_length_of_many_digits_is_no_server_error(length: bytes, service: LiveService) -> None:
    with connect(service) as connection:
        head = b"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
        connection.sendall(head + b"Content-Length: " + length + b"\r\n\r\n{}")
        said = read_to_the_end(connection)
    assert int(said.split()[1]) in (400, 413, 422)
    assert b"application/problem+json" in said


@pytest.mark.parametrize(
    "beginning",
    [b"Transfer-Encoding: gzip\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nno number\r\n"],
    ids=["unknown coding", "broken chunk"],
)
def test_a_body_that_is_not_http_is_told_so(beginning: bytes, service: LiveService) -> None:
    with connect(service) as connection:
        connection.sendall(
            b"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" + beginning
        )
        assert read_to_the_end(connection).startswith(b"HTTP/1.1 400")


FLOODS = {
    "members": b"{" + b",".join(b'"%d":0' % n for n in range(400_000)) + b"}",
    "members within": b'{"a":' + b"[" * 500 + b",".join([b"{}"] * 1_000_000) + b"]" * 500 + b"}",
    "items": b'{"target_embedding":[' + b",".join([b'"x"'] * 1_000_000) + b"]}",
}


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_values_is_not_even_parsed(flood: bytes, client: httpx.Client) -> None:
    problem = assert_problem(client.post("/score", content=flood, headers=JSON), "invalid-request")
    assert problem["detail"] == "the body has too many members and items"


@pytest.mark.parametrize("members", [{"unknown": 0}, {str(n): 0 for n in range(30)}], ids=["one", "thirty"])
def test_of_many_wrong_items_one_is_looked_at(members: dict[str, int]) -> None:
    body = {"model_manifests": [members] * 3_000, "target_embedding": ["x"] * 3_000}
    with pytest.raises(ValidationError) as failure:
        ScoreRequest.model_validate(body)
    assert failure.value.error_count() < 100


def test_a_request_may_have_as_many_values_as_the_limits_allow() -> None:
    assert (1 << 16) + 4 * MAX_MANIFESTS + len(ScoreRequest.model_fields) < MAX_VALUES


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
    with connect(service, HttpLimits().head_timeout_seconds + 10) as connection:
        connection.sendall(before + b"\r\n")
        time.sleep(1.0 if before else 0.0)
        connection.sendall(b"GET /health HTTP/1.1\r\nHost:")
        assert read_to_the_end(connection).count(b"HTTP/1.1 200") == bool(before)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may list the service's open files")
@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost:",
        b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{",
        b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=["nothing", "half a head", "a request", "half a body", "a large answer unread"],
)
def test_connections_that_wait_for_their_client_leave_room_for_others(
    said: bytes, few_files: LiveService
) -> None:
    with contextlib.ExitStack() as held:
        for number in range(300):
            connection = held.enter_context(connect(few_files))
            with contextlib.suppress(ConnectionError):  # it may have given way already
                connection.sendall(said)
            if number > 100 and number % 40 == 0:
                assert answers(few_files)
        process = psutil.Process(few_files.process.pid)
        assert len(process.net_connections("tcp")) < 140
    assert few_files.output().count("too many connections") <= 20


@pytest.fixture(scope="module")
def few_files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A service that may open 256 files, and listens on all addresses."""
    with live_service(
        tmp_path_factory.mktemp("few-files"), "--host", "0.0.0.0", max_open_files=256
    ) as running:
        yield running


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
    assert '"max_data_bytes":1048576,' in client.get("/info").text
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
    left = 'method="POST /eval",outcome="client-disconnected"'
    before = count_of(left, client)
    body = {**plain, "weights_url": endless_server, "weights_checksum": None}
    with service.client() as leaving, pytest.raises(httpx.ReadTimeout):
        leaving.post("/eval", json=body, timeout=0.5)
    wait_until(lambda: "soma_eval_requests_admitted 0.0" in client.get("/metrics").text)
    assert count_of(left, client) == before + 1
    assert "Traceback" not in service.output()


def test_a_client_that_leaves_within_its_body_is_no_error(service: LiveService, client: httpx.Client) -> None:
    left = 'method="POST /eval",outcome="client-disconnected"'
    before = count_of(left, client)
    with connect(service) as connection:
        connection.sendall(
            b"POST /eval HTTP/1.1\r\nHost: x\r\n"
            + b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n{"
        )
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
    line = re.escape(f'soma_eval_requests_total{{door="http",{labels},protocol="http"}} ')
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


def test_the_docs_open_in_a_browser_that_asks_for_the_key(guarded: LiveService) -> None:
    with guarded.client() as client:
        refused = client.get("/docs")
        assert_problem(refused, "unauthorized")
        assert refused.headers["www-authenticate"].startswith("Basic ")
        assert client.get("/docs", auth=("", "wrong")).status_code == 401
        assert client.get("/docs", headers={"Authorization": "Basic !"}).status_code == 401
        page = client.get("/docs", auth=("anybody", CANARY_API_KEY))
        assert page.status_code == 200
        for reference in [*re.findall(r'(?:src|href)="([^"]+)"', page.text), "/openapi.json"]:
            assert client.get(reference, auth=("", CANARY_API_KEY)).status_code == 200, reference
        for path in ("/info", "/eval", "/jobs/x"):
            other = client.get(path, auth=("", CANARY_API_KEY))
            assert_problem(other, "unauthorized")
            assert other.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("warning", ["HTTP asks for no API key", "gRPC has no authentication"])
def test_an_api_that_is_open_beyond_this_machine_is_warned_of(
    warning: str, few_files: LiveService, guarded: LiveService
) -> None:
    assert warning in few_files.output()
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
