"""Both clients behind one interface, so that every test of one is a test of the other."""

import asyncio
from collections.abc import Callable, Generator, Iterator
from functools import partial
from typing import Any, cast

import pytest

from soma_eval import AsyncClient, Client, RetryPolicy
from tests.file_server import FileServer
from tests.live_service import LiveService
from tests.recipe import TEST_KEY, encrypt, golden_cases, make_data, small_weights_bytes

GOLDEN = golden_cases()["small-short"]

MakeClient = Callable[..., Client]


class _BlockingAsyncClient:
    """An AsyncClient that is called like a Client: each call runs its event loop until it is done."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._client = AsyncClient(*args, **options)

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, getattr(self._client, name))

    def _call(self, method: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return self._loop.run_until_complete(method(*args, **options))

    def follow(self, job: Any) -> Generator[Any]:
        events = self._client.follow(job)
        try:
            while True:
                yield self._loop.run_until_complete(anext(events))
        except StopAsyncIteration:
            return
        finally:
            self._loop.run_until_complete(events.aclose())

    def close(self) -> None:
        self._loop.run_until_complete(self._client.aclose())
        self._loop.close()

    def __repr__(self) -> str:
        return repr(self._client)


@pytest.fixture(params=["sync", "async"])
def make_client(request: pytest.FixtureRequest) -> Iterator[MakeClient]:
    """Makes clients of either kind, quick to try again, and closes them."""
    made: list[Client] = []

    def make(url: str, **options: Any) -> Client:
        kind = Client if request.param == "sync" else cast(type[Client], _BlockingAsyncClient)
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
