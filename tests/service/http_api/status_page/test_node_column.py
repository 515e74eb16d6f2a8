"""The devices of a cluster are shown with their nodes; those of one machine have none to show."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.in_process_pool import InProcessPool
from tests.in_process_service import InProcessService, in_process_service
from workers.types import DeviceStatus

HTML = {"Accept": "text/html"}
COLUMN = '<th scope="col">Node</th>'


@pytest.fixture
def service(tmp_path: Path) -> Iterator[InProcessService]:
    with in_process_service(tmp_path / "data") as running:
        yield running


def test_the_devices_of_a_cluster_have_a_node(
    service: InProcessService, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = DeviceStatus("cuda:0", node="gpu-1", ready=True, busy=False, pid=7, restarts=0)
    broken = replace(one, node="<gpu-2>", ready=False, trouble="it does not start")
    monkeypatch.setattr(InProcessPool, "status", lambda pool: [one, broken])
    with service.client(headers=HTML) as client:
        page = client.get("/").text
    assert COLUMN in page
    assert '<td data-label="Node"><span>gpu-1</span></td>' in page
    assert '<td data-label="Node"><span>&lt;gpu-2&gt;</span></td>' in page
    assert '<tr class="note"><td colspan="8">' in page


def test_the_devices_of_one_machine_have_none(service: InProcessService) -> None:
    with service.client(headers=HTML) as client:
        assert COLUMN not in client.get("/").text


def test_a_node_that_left_is_named(service: InProcessService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcessPool, "nodes", lambda pool: {"gpu-1": True, "<gpu-2>": False})
    with service.client(headers=HTML) as client:
        page = client.get("/").text
    assert "Node &lt;gpu-2&gt; has left the cluster" in page
    assert "Node gpu-1 has left" not in page


def test_workers_on_one_device_have_names_of_their_own(
    service: InProcessService, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = DeviceStatus("cpu", ready=True, busy=False, pid=7, restarts=0)
    statuses = [one, replace(one, ready=False, trouble="the last worker froze")]
    monkeypatch.setattr(InProcessPool, "status", lambda pool: statuses)
    with service.client(headers=HTML) as client:
        page = client.get("/").text
    assert "<code>cpu</code>" in page
    assert "<code>cpu#2</code>" in page
    assert "<p>cpu#2: the last worker froze. Workers are started again" in page


def test_the_sentence_names_a_few_devices_and_counts_the_others(
    service: InProcessService, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = DeviceStatus("cuda:0", node="gpu-0", ready=True, busy=False, pid=7, restarts=0)
    lost = [replace(one, node=f"gpu-{number}", ready=False, trouble="it is gone") for number in range(1, 9)]
    monkeypatch.setattr(InProcessPool, "status", lambda pool: [one, *lost])
    with service.client(headers=HTML) as client:
        page = client.get("/").text
    assert "Yes, with 1 of 9 devices." in page
    assert "cuda:0 of node gpu-3: it is gone. And 5 more, below. Workers are" in page
