"""Clients of a running service, one that waits and one for asyncio.

    with Client("http://127.0.0.1:8000", api_key=key) as client:
        response = client.eval(data=b"...", weights_url="https://publisher.example/weights.enc", decryption_key=key)
        job = client.submit_score(data_url=..., model_manifests=[...], ...)
        for job in client.follow(job):
            print(job.state, job.progress.estimated_seconds_left)
        response = job.require_result()

`AsyncClient` has the same methods to be awaited, and `async for` for `follow` and `screen`. Both raise what is in
`soma_eval.errors`, and ValueError for an argument that can be sent nowhere. Cancelling a call, or closing its
client, closes its connection, and the service then stops the work; a job goes on. So does the work of a call whose
connection was lost and that was sent again with an Idempotency-Key, by which the service does it once.
"""

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx

from . import calls
from .calls import Call
from .exchange import Exchange, Following, ScreenExchange, Timeouts
from .responses import Job, Response, ScreenLine
from .retries import RetryPolicy
from .screening import AsyncScreening, Screening

P = ParamSpec("P")
R = TypeVar("R", bound=Response)
F = TypeVar("F", bound=Callable[..., Any])

RESPONSE_SECONDS = 3700.0
"""A little more than the service itself takes for a request at most, unless it is told otherwise."""


def _waiting(call: Callable[P, Call[R]]) -> "Callable[Concatenate[Client, P], R]":
    """The call as a method of Client."""

    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> R:
        (answer,) = self._run(self._connection.exchange(call(*args, **kwargs)))
        return answer

    return _described(method, call)


def _awaited(call: Callable[P, Call[R]]) -> "Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, R]]":
    """The call as a method of AsyncClient."""

    async def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> R:
        (answer,) = [answer async for answer in self._run(self._connection.exchange(call(*args, **kwargs)))]
        return answer

    return _described(method, call)


def _screening(call: Callable[P, Call[ScreenLine]]) -> "Callable[Concatenate[Client, P], Screening]":
    """The call as a method of Client."""

    def method(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Screening:
        exchange = self._connection.screening(call(*args, **kwargs))
        return Screening(self._run(exchange), exchange)

    return _described(method, call)


def _async_screening(
    call: Callable[P, Call[ScreenLine]],
) -> "Callable[Concatenate[AsyncClient, P], AsyncScreening]":
    """The call as a method of AsyncClient."""

    def method(self: "AsyncClient", /, *args: P.args, **kwargs: P.kwargs) -> AsyncScreening:
        exchange = self._connection.screening(call(*args, **kwargs))
        return AsyncScreening(self._run(exchange), exchange)

    return _described(method, call)


def _described(method: F, call: Callable[..., object]) -> F:
    """Name, docstring and signature of the call, for `help` and for editors."""
    functools.update_wrapper(method, call)
    signature = inspect.signature(call)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__signature__ = signature.replace(parameters=[own, *signature.parameters.values()])  # type: ignore[attr-defined]
    return method


class _Connection:
    """Where a service is and how it is spoken to."""

    def __init__(
        self, base_url: str, api_key: str | None, timeout_seconds: float, retry: RetryPolicy
    ) -> None:
        self.url = _service_url(base_url)
        self.headers = {} if api_key is None else {"Authorization": f"Bearer {_checked_key(api_key)}"}
        self._timeouts = Timeouts(timeout_seconds)
        self._retry = retry

    def exchange(self, call: Call[R]) -> Exchange[R]:
        return Exchange(call, self._retry, self._timeouts)

    def screening(self, call: Call[ScreenLine]) -> ScreenExchange:
        return ScreenExchange(call, self._retry, self._timeouts)

    def following(self, job: Job[R]) -> Following[R]:
        return Following(calls.events(job), self._retry, self._timeouts)


class Client:
    """Waits for each answer. One client may serve several threads; close it, or use it in a `with` block."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = RESPONSE_SECONDS,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is frozen)
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`timeout_seconds` is for the whole answer to one try; `transport` is for certificates and proxies of one's
        own. Without one, httpx takes both from the environment.

        Raises ValueError for a URL or a key that no service can have.
        """
        self._connection = _Connection(base_url, api_key, timeout_seconds, retry)
        self._http = httpx.Client(
            base_url=self._connection.url, headers=self._connection.headers, transport=transport
        )

    eval = _waiting(calls.eval)
    score = _waiting(calls.score)
    screen = _screening(calls.screen)
    submit_eval = _waiting(calls.submit_eval)
    submit_score = _waiting(calls.submit_score)
    job = _waiting(calls.job)
    jobs = _waiting(calls.jobs)
    cancel = _waiting(calls.cancel)
    health = _waiting(calls.health)
    ready = _waiting(calls.ready)
    info = _waiting(calls.info)

    def follow(self, job: Job[R]) -> Generator[Job[R]]:
        """The job now and after each change, up to its end. To stop earlier, close the generator."""
        return self._run(self._connection.following(job))

    def result(self, job: Job[R]) -> R:
        """Wait for the job's end; its result. Raises the job's error, or JobCancelled."""
        for update in self.follow(job):
            job = update
        return job.require_result()

    def _run(self, exchange: Exchange[R]) -> Generator[R]:
        for seconds in exchange.tries():
            time.sleep(seconds)
            with exchange.attempt(), self._http.stream(**exchange.request) as response:
                exchange.begin(response)
                for chunk in response.iter_bytes():
                    yield from exchange.feed(chunk)
                yield from exchange.end()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._connection.url!r})"


class AsyncClient:
    """The same for asyncio; close it with `aclose`, or use it in an `async with` block."""

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_seconds: float = RESPONSE_SECONDS,
        retry: RetryPolicy = RetryPolicy(),  # noqa: B008 (it is frozen)
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """As Client."""
        self._connection = _Connection(base_url, api_key, timeout_seconds, retry)
        self._http = httpx.AsyncClient(
            base_url=self._connection.url, headers=self._connection.headers, transport=transport
        )

    eval = _awaited(calls.eval)
    score = _awaited(calls.score)
    screen = _async_screening(calls.screen)
    submit_eval = _awaited(calls.submit_eval)
    submit_score = _awaited(calls.submit_score)
    job = _awaited(calls.job)
    jobs = _awaited(calls.jobs)
    cancel = _awaited(calls.cancel)
    health = _awaited(calls.health)
    ready = _awaited(calls.ready)
    info = _awaited(calls.info)

    def follow(self, job: Job[R]) -> AsyncGenerator[Job[R]]:
        """The job now and after each change, up to its end. To stop earlier, close the generator."""
        return self._run(self._connection.following(job))

    async def result(self, job: Job[R]) -> R:
        """Wait for the job's end; its result. Raises the job's error, or JobCancelled."""
        async for update in self.follow(job):
            job = update
        return job.require_result()

    async def _run(self, exchange: Exchange[R]) -> AsyncGenerator[R]:
        for seconds in exchange.tries():
            await asyncio.sleep(seconds)
            with exchange.attempt():
                async with self._http.stream(**exchange.request) as response:
                    exchange.begin(response)
                    async for chunk in response.aiter_bytes():
                        for value in exchange.feed(chunk):
                            yield value
                    for value in exchange.end():
                        yield value

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"AsyncClient({self._connection.url!r})"


def _service_url(text: str) -> str:
    """Raises ValueError, which shows nothing of a URL that may hold a password."""
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL:
        raise ValueError("the service's address is not a URL") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise ValueError(
            "the service's address must be an http or https URL: http://127.0.0.1:8000, for example"
        )
    if url.userinfo or url.query or url.fragment:
        raise ValueError("the service's address takes no user and no query: give the key as api_key")
    return str(url)


def _checked_key(key: str) -> str:
    """Raises ValueError, which shows nothing of it."""
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError("an API key has printable ASCII characters and no spaces")
    return key
