"""A service on a Ray cluster of three nodes: what the publisher, the collector of traces and Prometheus see of it."""

import base64
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.file_server import FileServer
from tests.golden_requests import manifest, post_eval
from tests.live_service import LiveService, live_service
from tests.otlp_receiver import OtlpReceiver
from tests.ray_cluster import LocalCluster, local_cluster
from tests.recipe import SMALL_WEIGHTS, make_data, small_weights_bytes
from tests.sockets import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(900)]

NODES = ("a", "b", "c")
NUM_BATCHES = 12
WAIT_SECONDS = 240.0


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with local_cluster() as started:
        for name in NODES:
            started.add_node(name)
        yield started


@pytest.fixture(scope="module")
def receiver() -> Iterator[OtlpReceiver]:
    with OtlpReceiver().running() as running:
        yield running


@pytest.fixture(scope="module")
def spread(
    cluster: LocalCluster, receiver: OtlpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveService]:
    """The service, with a worker ready on each node."""
    with service_on(cluster, receiver, tmp_path_factory.mktemp("spread")) as running:
        wait_until(lambda: sorted(ready_nodes(running)) == list(NODES), WAIT_SECONDS)
        yield running


@contextmanager
def service_on(cluster: LocalCluster, receiver: OtlpReceiver, folder: Path) -> Iterator[LiveService]:
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    flags = ("--pool", "ray", "--ray-address", cluster.address, "--node-data-dir", str(folder / "nodes"))
    with live_service(folder, *flags, "--traces", environment=environment) as running:
        yield running


def ready_nodes(service: LiveService) -> list[str]:
    with service.client() as client:
        return [device["node"] for device in client.get("/ready").json()["devices"] if device["ready"]]


def node_up(service: LiveService) -> dict[str, float]:
    """The metric, by node."""
    with service.client() as client:
        families = text_string_to_metric_families(client.get("/metrics").text)
        (family,) = [each for each in families if each.name == "soma_eval_node_up"]
    return {sample.labels["node"]: sample.value for sample in family.samples}


def request_of(published: dict[str, Any], num_batches: int) -> dict[str, Any]:
    return {
        "data": base64.b64encode(make_data({"pattern": "text", "size": num_batches * 16 * 1024})).decode(),
        "weights_url": published["url"],
        "weights_checksum": published["checksum"],
        "weights_size": published["size"],
        "seed": 7,
    }


def test_one_download_for_three_nodes_and_one_trace_of_what_they_did(
    spread: LiveService, service: LiveService, receiver: OtlpReceiver, files: FileServer
) -> None:
    published = manifest(files, "for-three-nodes", small_weights_bytes({**SMALL_WEIGHTS, "seed": 33}))
    body = request_of(published, NUM_BATCHES)
    trace_id = secrets.token_hex(16)
    traceparent = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
    with spread.client(headers=traceparent) as client:
        answer = post_eval(client, body)
    assert files.requests.count("/for-three-nodes") == 1
    folders = spread.data_dir.parent / "nodes"
    for node in NODES:
        copy: Path = folders / node / published["checksum"]
        assert copy.stat().st_size == published["size"]

    spans = receiver.trace(trace_id, "POST /eval")
    (evaluation,) = [span for span in spans if span.name == "evaluation"]
    for name in ("load", "batches"):
        shares = [span for span in spans if span.name == name]
        assert {span.attributes["soma_eval.node"] for span in shares} == set(NODES)
        assert {span.parent_id for span in shares} == {evaluation.span_id}
    done = [
        range(span.attributes["soma_eval.batches.start"], span.attributes["soma_eval.batches.stop"])
        for span in spans
        if span.name == "batches"
    ]
    assert sorted(index for share in done for index in share) == list(range(answer["num_batches"]))

    with service.client() as client:
        alone = post_eval(client, body)
    assert (answer["loss"], answer["embedding"]) == (alone["loss"], alone["embedding"])


def test_a_node_that_is_killed_is_seen_to_have_left(spread: LiveService, cluster: LocalCluster) -> None:
    assert node_up(spread) == dict.fromkeys(NODES, 1.0)
    lost = cluster.nodes.pop()
    lost.end()
    wait_until(lambda: node_up(spread) == {"a": 1.0, "b": 1.0, "c": 0.0}, WAIT_SECONDS)
    assert sorted(ready_nodes(spread)) == ["a", "b"]


def test_a_job_of_a_service_that_was_killed_goes_on_with_the_next_one(
    spread: LiveService,
    service: LiveService,
    cluster: LocalCluster,
    receiver: OtlpReceiver,
    files: FileServer,
) -> None:
    """The last test of this cluster: its service is killed."""
    published = manifest(files, "for-two-services", small_weights_bytes({**SMALL_WEIGHTS, "seed": 34}))
    body = request_of(published, 2 * NUM_BATCHES)
    with spread.client() as client:
        location = client.post("/eval", json=body, headers={"Prefer": "respond-async"}).headers["location"]
        wait_until(lambda: batches_done(client, location) > 0, WAIT_SECONDS)
        before = client.get(location).json()
    assert before["state"] == "running"
    spread.process.kill()
    spread.process.wait()
    with service_on(cluster, receiver, spread.data_dir.parent) as following, following.client() as client:
        wait_until(lambda: client.get(location).json()["finished_at"] is not None, WAIT_SECONDS)
        after = client.get(location).json()
        wait_until(lambda: {"a", "b"} <= set(ready_nodes(following)), WAIT_SECONDS)
    assert (after["state"], after["created_at"]) == ("succeeded", before["created_at"])
    assert files.requests.count("/for-two-services") == 1
    with service.client() as client:
        alone = post_eval(client, body)
    result = after["result"]
    assert (result["loss"], result["embedding"]) == (alone["loss"], alone["embedding"])


def batches_done(client: httpx.Client, location: str) -> int:
    progress = client.get(location).json()["progress"]
    return sum(model["batches_done"] or 0 for model in progress["models"]) if progress else 0
