"""The first sentence of the page: whether a request sent now is served, and if not, why and what to do."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.in_process_service import InProcessService, in_process_service
from tests.problems import assert_problem
from tests.service.http_api.status_page.page_text import text_of
from tests.service.http_api.status_page.request_headers import AS_JOB
from tests.sockets import wait_until

SERVED = "Yes. A request sent now is served."


def sentence(client: httpx.Client) -> str:
    """With its advice, as it is now."""
    return text_of(client.get("/status/panels").json()["panels"]["serving"])


def wait_for(client: httpx.Client, beginning: str) -> str:
    """The sentence once it begins so: panels are a tick old at most."""
    wait_until(lambda: sentence(client).startswith(beginning))
    return sentence(client)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[httpx.Client]:
    """Of a service whose data folder is `tmp_path`, which has nothing to do."""
    with in_process_service(tmp_path) as service, service.client() as connected:
        assert sentence(connected).startswith(SERVED)
        yield connected


@contextmanager
def disk_that_does_not_work(data_dir: Path) -> Iterator[None]:
    """A file in place of the folder in which downloads begin."""
    (data_dir / "partial").rename(data_dir / "aside")
    (data_dir / "partial").write_bytes(b"")
    try:
        yield
    finally:
        (data_dir / "partial").unlink()
        (data_dir / "aside").rename(data_dir / "partial")


def test_a_full_queue(tmp_path: Path, plain: dict[str, Any]) -> None:
    with (
        in_process_service(tmp_path, queue_size=1) as service,
        service.busy(),
        service.client() as client,
    ):
        assert sentence(client).startswith(SERVED)
        location = client.post("/eval", json=plain, headers=AS_JOB).headers["location"]
        words = wait_for(client, "Not now. The queue is full.")
        assert "refused as queue-full" in words
        assert re.search(r"free in \d+ s, which clients are told as Retry-After", words)
        queue = text_of(client.get("/status/panels").json()["panels"]["queue"])
        assert re.search(r"Retry-After now \d+ s", queue)
        assert_problem(client.post("/eval", json=plain), "queue-full")
        client.delete(location)


def test_no_worker(api: InProcessService) -> None:
    api.pool.is_ready = False
    try:
        with api.client() as client:
            words = wait_for(client, "No. No worker is ready.")
            assert "cpu: not tested yet." in words
            assert "if this lasts, the log says why" in words
            assert "refused as no-worker" in words
            assert client.get("/ready").json()["code"] == "no-worker"
    finally:
        api.pool.is_ready = True


def test_a_service_that_stops(tmp_path: Path, plain: dict[str, Any]) -> None:
    with in_process_service(tmp_path) as service, service.busy(), service.client() as client:
        location = client.post("/eval", json=plain, headers=AS_JOB).headers["location"]
        service.drain()
        words = wait_for(client, "No. The service is stopping.")
        assert "Running work may finish; what is new is refused." in words
        assert "Send requests to another service, or start this one again." in words
        assert "refused as draining" in words
        assert_problem(client.post("/eval", json=plain), "draining")
        client.delete(location)


def test_a_disk_that_does_not_work(client: httpx.Client, plain: dict[str, Any], tmp_path: Path) -> None:
    with disk_that_does_not_work(tmp_path):
        assert_problem(client.post("/eval", json=plain), "out-of-resources")
        words = wait_for(client, "No. The disk of the data folder does not work.")
        assert (
            "A file or folder of this service is gone or cannot be used. Free space, mount it again," in words
        )
        assert "refused as out-of-resources" in words
        assert client.get("/ready").json()["code"] == "out-of-resources"


def test_a_database_that_does_not_work(client: httpx.Client, plain: dict[str, Any], tmp_path: Path) -> None:
    for file in tmp_path.glob("state.sqlite*"):
        file.unlink()
    (tmp_path / "state.sqlite").write_bytes(b"no database" * 1000)
    assert_problem(client.post("/eval", json=plain, headers=AS_JOB), "out-of-resources")
    words = wait_for(client, "Yes, but no jobs.")
    assert "The state database is corrupt. Requests that wait for their answer are served;" in words
    assert "Free space for state.sqlite in the data folder, or move it away if it is damaged" in words
    assert client.post("/eval", json=plain).status_code == 200
    (tmp_path / "state.sqlite").unlink()
    assert client.post("/eval", json=plain, headers=AS_JOB).status_code == 202
    wait_for(client, SERVED)
