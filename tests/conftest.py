"""Fixtures for every folder of tests: one live service and one file server for each process of the run."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.file_server import FileServer
from tests.golden_requests import KEY, request_for
from tests.live_service import LiveService, live_service
from tests.recipe import encrypt, small_weights_bytes

# Read when torch is first imported. Threads of torch that wait for one another should sleep: spinning ones starve the
# other processes of tests.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that start a Ray cluster are skipped where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        for item in items:
            if item.get_closest_marker("ray"):
                item.add_marker(
                    pytest.mark.skip(reason="Ray is not installed: pip install 'soma-eval[cluster]'")
                )


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """`soma-eval serve` with the small model; shared, so a test must leave it as it found it."""
    with live_service(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def client(service: LiveService) -> Iterator[httpx.Client]:
    """An HTTP client of the shared service."""
    with service.client() as connected:
        yield connected


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    """A file server on loopback."""
    folder: Path = tmp_path_factory.mktemp("files")
    with FileServer(folder).running() as server:
        yield server


@pytest.fixture(scope="session")
def plain(files: FileServer) -> dict[str, Any]:
    """A valid /eval request: golden data inline, golden weights unencrypted."""
    return request_for(files, "plain.safetensors", small_weights_bytes())


@pytest.fixture(scope="session")
def sealed(files: FileServer) -> dict[str, Any]:
    """The same, encrypted."""
    return {**request_for(files, "sealed.enc", encrypt(small_weights_bytes())), "decryption_key": KEY}
