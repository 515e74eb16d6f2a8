"""The routes: operations, jobs, and clients that disconnect."""

import re
from typing import Any

import httpx
import pytest
from structlog.testing import capture_logs

from tests.golden_requests import assert_golden
from tests.in_process_service import InProcessService, in_process_service
from tests.live_service import LiveService
from tests.problems import assert_problem
from tests.service.http_api.api_key import CANARY_API_KEY
from tests.sockets import connect, wait_until

JSON = {"content-type": "application/json"}
ASYNC = {"Prefer": "respond-async"}


def test_a_request_is_logged_with_its_route_and_a_plain_status(client: httpx.Client) -> None:
    with capture_logs() as lines:
        client.post("/eval", content=bytes(8 << 20), headers=JSON)
        client.put("/jobs/some-job")
        wait_until(lambda: len(lines) >= 2)
    refused, put = (line for line in lines if line["event"] == "request")
    assert (refused["method"], refused["outcome"], refused["status"]) == ("POST /eval", "body-too-large", 413)
    assert put["method"] == "PUT /jobs/{job_id}"
    assert type(refused["status"]) is int


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


def test_docs_load_nothing_from_another_host(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.status_code == 200
    references = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert any(reference.endswith(".js") for reference in references)
    for reference in references:
        assert client.get(reference).status_code == 200, reference


def test_each_phase_of_an_evaluation_is_timed(client: httpx.Client, plain: dict[str, Any]) -> None:
    assert client.post("/eval", json=plain).status_code == 200
    text = client.get("/metrics").text
    for phase in ("queue", "download", "load", "eval"):
        assert f'soma_eval_phase_seconds_bucket{{le="+Inf",phase="{phase}"}}' in text


def test_a_job_ends_with_the_result_of_the_request(live: LiveService, sealed: dict[str, Any]) -> None:
    with live.client(headers={"Authorization": f"Bearer {CANARY_API_KEY}"}) as client:
        accepted = client.post("/eval", json=sealed, headers=ASYNC)
        assert accepted.status_code == 202
        location = accepted.headers["location"]
        with client.stream("GET", f"{location}/events") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            lines = [line for line in stream.iter_lines() if line.startswith("event: ")]
        job = client.get(location).json()
    assert lines[-1] == "event: succeeded"
    assert (job["state"], job["kind"]) == ("succeeded", "eval")
    assert_golden(job["result"])


def test_any_prefer_header_may_ask_for_a_job(client: httpx.Client, plain: dict[str, Any]) -> None:
    accepted = client.post("/eval", json=plain, headers=[("Prefer", "wait=5"), ("Prefer", "respond-async")])
    assert accepted.status_code == 202
    client.delete(accepted.headers["location"])


def test_a_job_that_fails_has_its_error(client: httpx.Client, refused: dict[str, Any]) -> None:
    location = client.post("/eval", json=refused, headers=ASYNC).headers["location"]
    with client.stream("GET", f"{location}/events") as stream:
        assert "event: failed" in list(stream.iter_lines())
    job = client.get(location).json()
    assert (job["state"], job["error"]["code"], job["result"]) == ("failed", "weights-invalid", None)


def test_a_job_can_be_cancelled(api: InProcessService, client: httpx.Client, plain: dict[str, Any]) -> None:
    with api.busy():
        location = client.post("/eval", json=plain, headers=ASYNC).headers["location"]
        wait_until(lambda: client.get(location).json()["state"] == "running")
        assert client.delete(location).json()["state"] == "cancelled"
        assert api.pool.num_running == 0
        assert "soma_eval_requests_admitted 0.0" in client.get("/metrics").text


def test_a_full_queue_refuses_requests_and_jobs(
    tmp_path_factory: pytest.TempPathFactory, plain: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("full")
    with in_process_service(folder, queue_size=2) as service, service.client() as client, service.busy():
        for _ in range(2):
            assert client.post("/eval", json=plain, headers=ASYNC).status_code == 202
        for headers in (ASYNC, {}):
            refused = client.post("/eval", json=plain, headers=headers)
            assert_problem(refused, "queue-full")
            assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (429, True)


DISCONNECTED = 'method="POST /eval",outcome="client-disconnected"'


def test_the_work_of_a_client_that_disconnects_is_cancelled(
    api: InProcessService, client: httpx.Client, plain: dict[str, Any]
) -> None:
    before = count_of(DISCONNECTED, client)
    body = httpx.Request("POST", "http://x", json=plain).content
    head = f"POST /eval HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with api.busy(), capture_logs() as lines:
        with connect(api.http_url) as connection:
            connection.sendall(head.encode() + body)
            wait_until(lambda: api.pool.num_running == 1)
        wait_until(lambda: "soma_eval_requests_admitted 0.0" in client.get("/metrics").text)
        wait_until(lambda: count_of(DISCONNECTED, client) == before + 1)
    assert api.pool.num_running == 0
    assert [line for line in lines if line["log_level"] not in ("debug", "info")] == []


def test_a_client_that_disconnects_within_its_body_is_no_error(
    api: InProcessService, client: httpx.Client
) -> None:
    before = count_of(DISCONNECTED, client)
    with connect(api.http_url) as connection:
        connection.sendall(
            b"POST /eval HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        )
        assert b"100 Continue" in connection.recv(1 << 16)  # so the body is being waited for
        connection.sendall(b"{")
    wait_until(lambda: count_of(DISCONNECTED, client) == before + 1)


def count_of(labels: str, client: httpx.Client) -> float:
    """Of the requests with these labels, over HTTP."""
    line = re.escape(f'soma_eval_requests_total{{door="http",{labels},protocol="http"}} ')
    found = re.search(rf"{line}(\S+)", client.get("/metrics").text)
    return float(found[1]) if found else 0.0
