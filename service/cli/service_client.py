"""A client of a running service, for commands that let it do the work.

What answers there may be anything. A request is a waiting one, so that closing its connection stops the work. How long
that may take is the service's own limit; that it is still there is seen from its /health while the request waits.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NoReturn, TypeVar

import httpx
from pydantic import ValidationError

from service.cancellation import cancel_when
from service.cli.remote_error import RemoteError, RemoteTrouble
from service.cli.urls import host_of
from service.cli.usage import BadUsage
from soma_eval.responses import Response

_CONNECT_SECONDS = 10.0
_ANSWER_SECONDS = 30.0
"""For an answer that needs no work."""
_HEALTH_EVERY_SECONDS = 15.0
_MAX_FAILURES = 3
"""So many times in a row nothing answers at /health: then the service is gone."""
_MORE_SECONDS = 60.0
"""On top of the service's own limit of a request, after which it answers by itself."""
_USUAL_LIMIT_SECONDS = 3600.0
_MAX_ANSWER_BYTES = 64 << 20


R = TypeVar("R", bound=Response)


class NotOurs(Exception):
    """The answer is not one that soma-eval gives; the message says what it is."""


class ServiceClient:
    """Talks to one service. Requests may be made at once."""

    def __init__(
        self, client: httpx.AsyncClient, *, health_every_seconds: float = _HEALTH_EVERY_SECONDS
    ) -> None:
        self._client = client
        self._health_every_seconds = health_every_seconds
        self._limit_seconds: float | None = None

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON of what answers at once. Raises BadUsage, RemoteTrouble where nothing of ours answers."""
        return await self._send("GET", path, None, _ANSWER_SECONDS)

    async def get_text(self, path: str) -> str:
        """The same for text. Raises RemoteError where it is refused."""
        try:
            response = await self._client.get(path, timeout=_timeout(_ANSWER_SECONDS))
        except httpx.HTTPError as error:
            raise no_service(_why_no_answer(error)) from None
        if response.status_code != httpx.codes.OK:
            raise no_service(f"what answers there is not soma-eval: status {response.status_code} for {path}")
        return response.text

    async def post(self, path: str, body: dict[str, Any], kind: type[R]) -> R:
        """The answer to work, however long that takes. Cancelling closes the connection, which stops the work.

        Raises BadUsage where the URL is none, RemoteError with what the service says went wrong, RemoteTrouble where
        no service answers, or the one that did no longer does.
        """
        if self._limit_seconds is None:
            self._limit_seconds = await self._request_limit()
        work = self._send("POST", path, body, self._limit_seconds + _MORE_SECONDS)
        status, answer = await cancel_when(self._watch_health(), work)
        if status == httpx.codes.OK:
            return _answer_of_kind(kind, answer)
        raise RemoteTrouble(answer) if answer.get("retryable") is True else RemoteError(answer)

    async def _send(
        self, method: str, path: str, body: dict[str, Any] | None, seconds: float
    ) -> tuple[int, dict[str, Any]]:
        try:
            async with self._client.stream(method, path, json=body, timeout=_timeout(seconds)) as response:
                return response.status_code, parse_json_object(await _read_all(response))
        except httpx.InvalidURL as error:
            raise BadUsage(f"this is no URL of a service: {error}") from None
        except httpx.HTTPError as error:
            raise no_service(_why_no_answer(error)) from None
        except NotOurs as error:
            raise no_service(f"what answers there is not soma-eval: {error}") from None

    async def _request_limit(self) -> float:
        """How long the service lets one request take, as it says itself."""
        try:
            _, info = await self.get("/info")
            limit = info["limits"]["request_timeout_seconds"]
        except (RemoteError, KeyError, TypeError):
            return _USUAL_LIMIT_SECONDS
        return float(limit) if type(limit) in (int, float) else _USUAL_LIMIT_SECONDS

    async def _watch_health(self) -> NoReturn:
        failures = 0
        while failures < _MAX_FAILURES:
            await asyncio.sleep(self._health_every_seconds)
            try:
                await self._client.get("/health", timeout=_timeout(self._health_every_seconds))
                failures = 0
            except httpx.HTTPError:
                failures += 1
        raise no_service("it no longer answers")


@asynccontextmanager
async def connect(
    url: str, api_key: str | None, *, compute_anew: bool = False
) -> AsyncIterator[ServiceClient]:
    """A client of the service at this URL; nothing is sent yet. Raises BadUsage where it is no URL.

    `compute_anew` asks it to take no result that it has kept.
    """
    host_of(url)
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    if compute_anew:
        headers["Cache-Control"] = "no-cache"
    async with httpx.AsyncClient(base_url=url, headers=headers, trust_env=False) as client:
        yield ServiceClient(client)


def parse_json_object(content: bytes) -> dict[str, Any]:
    """Raises NotOurs, which tells an HTML page from a JSON list."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        start = content[:1024].lstrip().lower()
        page = start.startswith((b"<!doctype html", b"<html"))
        raise NotOurs(
            "it sent an HTML page" if page else "it sent no JSON" if content else "it sent nothing"
        ) from None
    if not isinstance(found, dict):
        raise NotOurs(f"it sent JSON that is no object but {kind_of_value(found)}")
    return found


def kind_of_value(value: object) -> str:
    """What a value of JSON is, in words."""
    match value:
        case None:
            return "missing or null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "a text"
        case list():
            return "a list" if value else "an empty list"
    return "an object"


def _answer_of_kind(kind: type[R], answer: dict[str, Any]) -> R:
    """Raises RemoteTrouble, which names the member that is missing or odd and nothing of what was sent."""
    try:
        return kind.model_validate_json(json.dumps(answer))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise no_service(
            f"what answers there is not soma-eval: {first['loc'][0]}: {first['msg'].lower()}"
        ) from None


def no_service(detail: str) -> RemoteTrouble:
    """The error where no service answers."""
    return RemoteTrouble({"code": "no-service", "detail": detail})


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=_CONNECT_SECONDS)


async def _read_all(response: httpx.Response) -> bytes:
    content = bytearray()
    async for chunk in response.aiter_bytes():
        content += chunk
        if len(content) > _MAX_ANSWER_BYTES:
            raise NotOurs(f"its answer is longer than {_MAX_ANSWER_BYTES >> 20} MiB")
    return bytes(content)


def _why_no_answer(error: httpx.HTTPError) -> str:
    match error:
        case httpx.ConnectTimeout():
            return f"nothing answered within {_CONNECT_SECONDS:g} s"
        case httpx.TimeoutException():
            return "it did not answer in time"
        case httpx.ConnectError():
            words = str(error).lower()
            tls = "ssl" in words or "tls" in words or "certificate" in words
            return "it speaks no https, or its certificate is not valid" if tls else "nothing listens there"
        case httpx.RemoteProtocolError():
            return "it closed the connection without an answer, or does not speak HTTP"
        case httpx.NetworkError():
            return "it closed the connection"
    return f"no answer ({type(error).__name__})"
