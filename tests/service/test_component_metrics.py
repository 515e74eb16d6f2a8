"""What /metrics says of devices, cache, downloads and jobs, after real requests."""

import base64
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.file_server import FileServer
from tests.golden_requests import request_for
from tests.in_process_pool import InProcessPool
from tests.in_process_service import InProcessService, in_process_service
from workers.types import DeviceStatus, WorkerMemory

DATA = base64.b64encode(b"some data").decode()
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples(service: InProcessService) -> Samples:
    """Everything that is exposed: (name, labels) -> value. An empty label is none, as for Prometheus."""
    with service.client() as client:
        text = client.get("/metrics").text
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, frozenset((label, text) for label, text in sample.labels.items() if text)
            assert key not in found, "Prometheus refuses a page that has a series twice"
            found[key] = sample.value
    return found


def value(found: Samples, name: str, **labels: str) -> float:
    return found["soma_eval_" + name, frozenset(labels.items())]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InProcessService]:
    with in_process_service(tmp_path / "data", cache_max_bytes=1 << 20) as running:
        yield running


def test_a_new_service_tells_what_it_is_and_counts_from_0(service: InProcessService) -> None:
    found = samples(service)
    (build,) = (dict(labels) for name, labels in found if name == "soma_eval_build_info")
    assert build.keys() == {"version", "torch", "soma_arrgen", "architecture", "precision"}
    assert (build["version"], build["precision"]) == ("0.1.0", "float32")
    assert value(found, "worker_up", device="cpu") == 1
    assert value(found, "cache_limit_bytes") == 1 << 20
    assert value(found, "queue_size") == 64
    for name in ("cache_bytes", "cache_hits_total", "cache_misses_total", "cache_evictions_total"):
        assert value(found, name) == 0
    assert value(found, "download_bytes_total", kind="model") == 0
    assert value(found, "jobs", state="queued") == 0
    assert value(found, "request_failures_total", fault="service", code="internal-error") == 0


def test_the_operators_guide_names_every_metric_and_no_other(service: InProcessService) -> None:
    with service.client() as client:
        client.get("/health")
        exposed = set(re.findall(r"^# TYPE (\S+)", client.get("/metrics").text, re.MULTILINE))
    guide = (Path(__file__).parents[2] / "docs" / "operators.md").read_text()
    table = "".join(line for line in guide.splitlines(keepends=True) if line.startswith("| `soma_eval_"))
    assert set(re.findall(r"soma_eval_\w+", table)) == {
        name for name in exposed if not name.endswith("_created")
    }


def test_downloads_and_the_cache_are_counted(service: InProcessService, files: FileServer) -> None:
    weights = [request_for(files, f"{index}.counted", bytes([index]) * 400_000) for index in range(3)]
    with service.client() as client:
        for body in (weights[0], weights[0], weights[1], weights[2]):
            assert client.post("/eval", json=body).status_code == 200
        absent = {"data": DATA, "weights_url": f"{files.base_url}/absent?canary-query"}
        assert client.post("/eval", json=absent).json()["code"] == "model-unavailable"
    found = samples(service)
    assert value(found, "cache_hits_total") == 1
    assert value(found, "cache_misses_total") == 4
    assert value(found, "cache_evictions_total") == 1  # three files of 400 kB, and room for two
    assert value(found, "cache_bytes") == 800_000
    assert value(found, "download_bytes_total", kind="model") == 1_200_000
    assert value(found, "download_failures_total", reason="model-unavailable") == 1
    assert value(found, "request_failures_total", fault="model_owner", code="model-unavailable") == 1
    assert "canary" not in str(found)


def test_a_label_holds_nothing_that_somebody_sent(service: InProcessService, files: FileServer) -> None:
    good = request_for(files, "labelled", b"weights")
    with service.client() as client:
        answers = [
            client.post("/eval", json=body, headers={"Prefer": preference})
            for body in (good, {"data": DATA, "weights_url": f"{files.base_url}/absent?canary-query"}, {})
            for preference in ("wait", "respond-async")
        ]
        client.get("/canary-path")
        jobs = client.get("/jobs").json()["jobs"]
        for job in jobs:
            client.get(f"/jobs/{job['id']}/events")
    labels = [label for _, labels in samples(service) for label in labels]
    known = {
        "code",
        "device",
        "door",
        "fault",
        "kind",
        "le",
        "method",
        "node",
        "outcome",
        "phase",
        "protocol",
    }
    build = {"version", "torch", "soma_arrgen", "architecture", "precision"}
    assert {name for name, _ in labels} <= known | build | {"reason", "state"}
    texts = " ".join(text for _, text in labels)
    ids = [job["id"] for job in jobs] + [answer.headers["x-request-id"] for answer in answers]
    for sent in ("canary", "://", "127.0.0.1", good["weights_checksum"], *ids):
        assert sent not in texts


def test_failures_have_their_fault(service: InProcessService) -> None:
    with service.client() as client:
        assert client.post("/eval", json={}).status_code == 422
        assert client.get("/nothing").status_code == 404
    found = samples(service)
    assert value(found, "request_failures_total", fault="client", code="invalid-request") == 1
    assert value(found, "request_failures_total", fault="client", code="not-found") == 1


def test_jobs_are_counted_by_state(service: InProcessService, files: FileServer) -> None:
    url = files.publish("job.counted", b"weights")
    body = {"data": DATA, "weights_url": url}
    with service.client() as client, service.busy():
        assert client.post("/eval", json=body, headers={"Prefer": "respond-async"}).status_code == 202
        while value(samples(service), "jobs", state="running") != 1:
            pass
    while value(samples(service), "jobs", state="succeeded") != 1:
        pass


def test_devices(service: InProcessService, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = DeviceStatus(
        "cuda:0",
        ready=False,
        busy=False,
        pid=None,
        restarts=3,
        self_test_age_seconds=7.5,
        restarts_by_reason={"killed": 2, "hung": 1},
        memory=WorkerMemory(total=80, used=40, weights=20, weights_limit=48),
    )
    untested = DeviceStatus("cpu", ready=True, busy=True, pid=1, restarts=0)
    twin = replace(untested, ready=False)
    monkeypatch.setattr(InProcessPool, "status", lambda pool: [gpu, untested, twin])
    found = samples(service)
    assert value(found, "worker_up", device="cuda:0") == 0
    assert [value(found, "worker_up", device=name) for name in ("cpu", "cpu#2")] == [1, 0]
    assert value(found, "worker_restarts_total", device="cuda:0", reason="killed") == 2
    assert (value(found, "worker_restarts"), value(found, "workers_ready")) == (3, 1)
    assert value(found, "workers_busy") == 2
    assert value(found, "self_test_age_seconds", device="cuda:0") == 7.5
    assert value(found, "device_memory_bytes", device="cuda:0", kind="weights_limit") == 48
    ages = [dict(labels)["device"] for name, labels in found if name == "soma_eval_self_test_age_seconds"]
    assert ages == ["cuda:0"]  # no age where nothing was tested


def test_the_one_machine_of_a_service_without_a_cluster_is_there(service: InProcessService) -> None:
    assert value(samples(service), "node_up") == 1


def test_nodes_and_their_devices(service: InProcessService, monkeypatch: pytest.MonkeyPatch) -> None:
    one = DeviceStatus("cuda:0", node="gpu-1", ready=True, busy=False, pid=7, restarts=0)
    statuses = [one, replace(one, node="gpu-2", ready=False)]
    monkeypatch.setattr(InProcessPool, "status", lambda pool: statuses)
    monkeypatch.setattr(InProcessPool, "nodes", lambda pool: {"gpu-0": False, "gpu-1": True, "gpu-2": True})
    found = samples(service)
    assert [value(found, "node_up", node=f"gpu-{n}") for n in range(3)] == [0, 1, 1]
    ready = [value(found, "worker_up", node=node, device="cuda:0") for node in ("gpu-1", "gpu-2")]
    assert ready == [1, 0]
