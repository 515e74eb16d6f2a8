"""Both clients behind one interface, so that every test of one is a test of the other."""

from collections.abc import Iterator
from typing import Any, cast

import pytest

from soma_eval import Client, RetryPolicy
from tests.file_server import FileServer
from tests.golden_requests import GOLDEN_EVALUATION as GOLDEN
from tests.live_service import LiveService
from tests.recipe import TEST_KEY, encrypt, make_data, small_weights_bytes
from tests.soma_eval.clients import BlockingAsyncClient, MakeClient


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Makes clients of either kind, quick to try again, and closes them."""
    made: list[Client] = []

    def make(url: str, **options: Any) -> Client:
        kind = Client if request.param == "sync" else cast(type[Client], BlockingAsyncClient)
        policy = RetryPolicy(max_tries=3, max_seconds=30.0, first_wait_seconds=0.01)
        made.append(kind(url, **{"retry": policy} | options))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def remote(make_client: MakeClient, service: LiveService) -> Client:
    """A client of the shared service."""
    return make_client(service.http_url)


@pytest.fixture(scope="session")
def evaluation(files: FileServer) -> dict[str, Any]:
    """Arguments of `eval` whose loss is known."""
    assert GOLDEN.weights == {"scheme": "scaled", "seed": 7, "gain": 1.0}
    return {
        "data": make_data(GOLDEN.data),
        "weights_url": files.publish("client.enc", encrypt(small_weights_bytes())),
        "decryption_key": TEST_KEY,
        "seed": GOLDEN.seed,
    }
