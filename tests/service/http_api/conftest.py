"""Two services: one on a thread of this process, whose pool answers from a table, and a real one."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.file_server import FileServer
from tests.golden_requests import request_for
from tests.in_process_pool import Answer
from tests.in_process_service import InProcessService, in_process_service
from tests.live_service import LiveService, live_service
from tests.service.http_api.api_key import CANARY_API_KEY
from workers.errors import WeightsInvalid


@pytest.fixture(scope="session")
def refused(files: FileServer) -> dict[str, Any]:
    """An /eval request whose weights the pool of `api` refuses."""
    return request_for(files, "refused.safetensors", b"no weights")


@pytest.fixture(scope="session")
def api(tmp_path_factory: pytest.TempPathFactory, refused: dict[str, Any]) -> Iterator[InProcessService]:
    """Shared by the tests of this folder, so a test must leave it as it found it."""
    answers: dict[str, Answer] = {refused["weights_checksum"]: WeightsInvalid("not weights")}
    with in_process_service(tmp_path_factory.mktemp("api"), answers) as running:
        yield running


@pytest.fixture
def client(api: InProcessService) -> Iterator[httpx.Client]:
    """An HTTP client of `api`."""
    with api.client() as connected:
        yield connected


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveService]:
    """A real service that asks for an API key, may open 256 files, and logs all it can."""
    with live_service(
        tmp_path_factory.mktemp("live"),
        *("--log-level", "debug", "--log-format", "json"),
        environment={"SOMA_EVAL_API_KEYS": CANARY_API_KEY},
        max_open_files=256,
    ) as running:
        yield running
        assert running.stop() == 0
        assert not [name for name in running.blobs() if "part" in name]
