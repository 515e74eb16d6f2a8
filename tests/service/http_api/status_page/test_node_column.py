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
