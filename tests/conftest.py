"""What several tests share: one live service and one file server for the whole run."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.file_server import FileServer
from tests.live_service import LiveService, live_service


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
