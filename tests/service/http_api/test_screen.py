"""POST /screen as a stream: lines while it runs, a reader that is slow or leaves, trouble in the middle."""

import base64
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.file_server import FileServer
from tests.golden_requests import manifest
from tests.in_process_pool import Answer, eval_result
from tests.in_process_service import InProcessService, in_process_service
from tests.problems import assert_problem
from workers.errors import EvaluationCrashesWorker, NoWorker, OutOfMemory, WorkerCrashed


def body(files: FileServer, num_pieces: int, num_targets: int = 0, **more: Any) -> dict[str, Any]:
    published = manifest(files, "good.safetensors", b"good weights")
    return {
        "pieces": [{"data": base64.b64encode(b"piece %d" % i).decode()} for i in range(num_pieces)],
        "models": [published],
        "targets": [{"embedding": [1.0] * 16, "distance_threshold": 0.1}] * num_targets,
        **more,
    }


def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def test_lines(client: httpx.Client, files: FileServer) -> None:
    response = client.post("/screen", json=body(files, 40, 2))
    *lines, last = map(json.loads, response.text.splitlines())
    assert sorted(line["piece"] for line in lines) == list(range(40))
    assert lines[0]["targets"][1] == {"id": 1, "winner": 0, "distance": pytest.approx(0.0), "hit": True}
    assert (last["summary"]["pieces"], last["summary"]["hits"]) == (40, 80)


def test_a_line_is_sent_before_the_next_group_is_done(api: InProcessService, files: FileServer) -> None:
    with api.client() as client, client.stream("POST", "/screen", json=body(files, 200)) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines))["piece"] in range(200)


def test_a_reader_that_stops_reading_stops_the_work(tmp_path: Path, files: FileServer) -> None:
    """Lines of 100 targets fill the buffers of the connection long before all pieces are done."""
    with in_process_service(tmp_path) as service:
        content = json.dumps(body(files, 5000, 500)).encode()
        host, port = service.http_url.removeprefix("http://").split(":")
        head = f"POST /screen HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head.encode() + b"%d\r\n\r\n" % len(content) + content)
            until(lambda: len(service.pool.jobs) > 0)
            before = -1
            while before != len(service.pool.jobs):  # until nothing moves any more
                before = len(service.pool.jobs)
                time.sleep(1.0)
            assert before < 5000 / 16 * 0.8
        with service.client() as client:  # and once it has left, its place is free
            until(lambda: "requests_admitted 0.0" in client.get("/metrics").text)


def test_a_client_that_leaves_ends_the_work(tmp_path: Path, files: FileServer) -> None:
    with in_process_service(tmp_path) as service, service.busy():
        with (
            service.client() as client,
            client.stream("POST", "/screen", json=body(files, 40)) as response,
        ):
            assert response.status_code == 200
            until(lambda: service.pool.num_running > 0)
        until(lambda: service.pool.num_running == 0)
        assert service.pool.num_cancelled > 0


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (NoWorker("none"), "no-worker"),
        (WorkerCrashed("lost"), "worker-crashed"),
        (OutOfMemory("full"), "out-of-memory"),
        (ZeroDivisionError("a bug"), "internal-error"),
    ],
)
def test_trouble_of_the_service_is_in_the_last_line(
    tmp_path: Path, files: FileServer, failure: Answer, code: str
) -> None:
    published = manifest(files, "good.safetensors", b"good weights")
    with (
        in_process_service(tmp_path, {published["checksum"]: failure}) as service,
        service.client() as client,
    ):
        response = client.post("/screen", json=body(files, 40))
    assert response.status_code == 200
    *lines, last = map(json.loads, response.text.splitlines())
    assert last["error"]["code"] == code
    assert last["error"]["fault"] == "service"
    assert last["summary"]["pieces"] == len(lines) < 40


def test_a_model_that_ends_workers_is_given_up(tmp_path: Path, files: FileServer) -> None:
    good = manifest(files, "good.safetensors", b"good weights")
    bad = manifest(files, "crashing.safetensors", b"crashing weights")
    answers: dict[str, Answer] = {bad["checksum"]: EvaluationCrashesWorker("ended two workers")}
    with in_process_service(tmp_path, answers) as service, service.client() as client:
        response = client.post("/screen", json=body(files, 100, models=[bad, good]))
        *lines, last = map(json.loads, response.text.splitlines())
        crashing = [job for job in service.pool.jobs if job.weights_checksum == bad["checksum"]]
    assert last["error"] is None
    assert len(lines) == 100
    for line in lines:
        assert line["models"][0]["error"]["code"] == "evaluation-crashes-worker"
        assert line["models"][1]["loss"] == eval_result().loss
    assert len(crashing) <= 2 + 2 * 2  # two groups at once, and of each two pieces alone


def test_limits(tmp_path: Path, files: FileServer) -> None:
    limits: dict[str, Any] = {
        "max_pieces": 3,
        "max_targets": 2,
        "max_models": 1,
        "max_screen_body_bytes": 20_000,
    }
    with in_process_service(tmp_path, **limits) as service, service.client() as client:
        published = manifest(files, "good.safetensors", b"good weights")
        for too_much in (
            body(files, 4),
            body(files, 1, 3),
            body(files, 1, models=[published, {**published, "id": "again"}]),
        ):
            assert_problem(client.post("/screen", json=too_much), "invalid-request")
        large = body(files, 1, pieces=[{"data": "A" * 30_000}])
        assert_problem(client.post("/screen", json=large), "body-too-large")
        assert client.post("/screen", json=body(files, 3, 2)).status_code == 200


def test_a_full_queue_is_said_before_any_line(tmp_path: Path, files: FileServer) -> None:
    with (
        in_process_service(tmp_path, queue_size=1) as service,
        service.busy(),
        service.client() as client,
        client.stream("POST", "/screen", json=body(files, 1)),
        service.client() as other,
    ):
        assert_problem(other.post("/screen", json=body(files, 1)), "queue-full")


def test_a_key_stands_for_one_body(client: httpx.Client, files: FileServer) -> None:
    key = {"Idempotency-Key": "of-a-screen"}
    for _ in range(2):
        assert client.post("/screen", json=body(files, 3), headers=key).status_code == 200
    other = client.post("/screen", json=body(files, 2), headers=key)
    assert_problem(other, "idempotency-key-reused")
    assert other.status_code == 422


def test_a_key_gives_the_same_answer_again(tmp_path: Path, files: FileServer) -> None:
    key = {"Idempotency-Key": "k"}
    answers = []
    for _ in range(2):  # after a restart too
        with in_process_service(tmp_path, max_kept_results=100) as service, service.client() as client:
            response = client.post("/screen", json=body(files, 20, 2), headers=key)
            *lines, _last = map(json.loads, response.text.splitlines())
            for line in lines:
                line["models"][0].pop("result_cached")
            answers.append(sorted(lines, key=lambda line: int(line["piece"])))
            num_jobs = len(service.pool.jobs)
    assert answers[0] == answers[1]
    assert num_jobs == 0


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_that_is_none_is_refused(key: str, client: httpx.Client, files: FileServer) -> None:
    response = client.post("/screen", json=body(files, 1), headers={"Idempotency-Key": key})
    assert_problem(response, "invalid-request")


def test_keys_of_two_api_keys_are_apart(tmp_path: Path, files: FileServer) -> None:
    with in_process_service(tmp_path, api_keys="one,two") as service, service.client() as client:
        for api_key, num_pieces in (("one", 1), ("two", 2), ("one", 1)):
            headers = {"Idempotency-Key": "k", "Authorization": f"Bearer {api_key}"}
            assert client.post("/screen", json=body(files, num_pieces), headers=headers).status_code == 200


def test_where_nothing_is_kept_a_key_holds_for_the_life_of_the_process(
    tmp_path: Path, files: FileServer
) -> None:
    for _ in range(2):
        with in_process_service(tmp_path, state_url="off") as service, service.client() as client:
            key = {"Idempotency-Key": "k"}
            assert client.post("/screen", json=body(files, 1), headers=key).status_code == 200
            assert_problem(client.post("/screen", json=body(files, 2), headers=key), "idempotency-key-reused")


def test_without_a_working_database_only_a_key_is_refused(tmp_path: Path, files: FileServer) -> None:
    with in_process_service(tmp_path) as service, service.client() as client:
        for file in tmp_path.glob("state.sqlite*"):
            file.unlink()
        (tmp_path / "state.sqlite").write_bytes(b"no database" * 1000)
        refused = client.post("/screen", json=body(files, 1), headers={"Idempotency-Key": "k"})
        assert_problem(refused, "out-of-resources")
        assert client.post("/screen", json=body(files, 1)).status_code == 200


def test_a_refused_screen_leaves_its_key_free(tmp_path: Path, files: FileServer) -> None:
    key = {"Idempotency-Key": "k"}
    with in_process_service(tmp_path, max_pieces=1) as service, service.client() as client:
        too_many = client.post("/screen", json=body(files, 2), headers=key)
        assert_problem(too_many, "invalid-request")
        assert client.post("/screen", json=body(files, 1), headers=key).status_code == 200
