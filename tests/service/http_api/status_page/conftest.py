"""A service that looks busy, one that is idle and asks for an API key, and a request for jobs."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from tests.file_server import FileServer
from tests.in_process_service import InProcessService, in_process_service
from tests.service.http_api.api_key import CANARY_API_KEY
from tests.service.http_api.status_page.busy_service import busy_service
from tests.service.http_api.status_page.request_headers import AS_JOB, HTML


@pytest.fixture(scope="session")
def busy(tmp_path_factory: pytest.TempPathFactory, files: FileServer) -> Iterator[InProcessService]:
    """Shared, so a test must leave it as it found it."""
    with busy_service(tmp_path_factory.mktemp("busy"), files) as running:
        yield running


@pytest.fixture(scope="session")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InProcessService]:
    """A service that asks for an API key; shared, so a test must leave it as it found it."""
    with in_process_service(
        tmp_path_factory.mktemp("locked"), api_keys=(SecretStr(CANARY_API_KEY),)
    ) as running:
        yield running


@pytest.fixture
def browser(locked: InProcessService) -> Iterator[httpx.Client]:
    """A client of `locked` that asks as a browser does, and keeps cookies."""
    with locked.client(headers={**HTML, "Sec-Fetch-Site": "same-origin"}) as client:
        yield client


@pytest.fixture
def signed_in(browser: httpx.Client) -> httpx.Client:
    """The same, with a session."""
    response = browser.post("/sign-in", data={"key": CANARY_API_KEY})
    assert response.status_code == 303
    return browser


@pytest.fixture
def job(locked: InProcessService, plain: dict[str, Any]) -> Iterator[str]:
    """The path of a job of `locked` that runs until the test ends."""
    with locked.busy(), locked.client(headers={"Authorization": f"Bearer {CANARY_API_KEY}"}) as client:
        location: str = client.post("/eval", json=plain, headers=AS_JOB).headers["location"]
        yield location
        client.delete(location)
