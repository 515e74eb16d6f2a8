"""Around every HTTP request: a request id, the API key, the limits of the body, a line of log, the metrics."""

import logging
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http import HTTPStatus

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import tracing
from service.config import Settings
from service.http_api.api_keys import OPEN_PATHS, SIGN_IN, ApiKeys
from service.http_api.request_body import MAX_SCREEN_VALUES, BodyReader
from service.metrics import Metrics

SCREEN_PATH = "/screen"
SCORING_PATHS = frozenset({"/eval", "/score", SCREEN_PATH})
STATUS_PATH = "/status/"
"""What an open status page asks for, again and again."""
_VERBS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

log = structlog.get_logger(__name__)


class RequestMiddleware:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routes: list[BaseRoute],
        settings: Settings,
        api_keys: ApiKeys,
        metrics: Metrics,
        check_queue: Callable[[], None],
        error_response: Callable[[Exception, Request], Response],
    ) -> None:
        self._app = app
        self._routes = routes
        self._bodies = BodyReader(settings.max_body_bytes)
        self._screen_bodies = BodyReader(settings.max_screen_body_bytes, max_values=MAX_SCREEN_VALUES)
        self._api_keys = api_keys
        self._metrics = metrics
        self._check_queue = check_queue
        self._error_response = error_response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connection pass untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope["soma_eval.request_id"] = request_id
        scope["soma_eval.routes"] = [r for r in self._routes if r.matches(scope)[0] is not Match.NONE]
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        started = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id), _span_of(scope) as span:
            try:
                await self._serve(scope, receive, send_with_id)
            finally:
                outcome = scope.get("soma_eval.outcome", "ok" if status < 400 else str(status))
                self._account(scope, status, outcome, time.monotonic() - started)
                span.set({"http.response.status_code": status, "soma_eval.outcome": outcome})
                if status >= 500:  # what a client did wrong is no failure of a server's span
                    span.fail(outcome)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        has_started = False

        async def send_noting_the_start(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            scope["soma_eval.caller"] = self._api_keys.check(scope)
            body = b""  # of every other request the body is not read
            if scope["path"] in SCORING_PATHS and scope["method"] == "POST":
                self._check_queue()
                bodies = self._screen_bodies if scope["path"] == SCREEN_PATH else self._bodies
                body = await bodies.read(scope, receive)
                self._check_queue()  # again, as others may have been admitted meanwhile
            is_form = scope["path"] == SIGN_IN
            receive_body = receive if is_form else _receive_again(body, receive)
            await self._app(scope, receive_body, send_noting_the_start)
        except Exception as error:
            if not has_started:
                await self._error_response(error, Request(scope))(scope, receive, send)

    def _account(self, scope: Scope, status: int, outcome: str, seconds: float) -> None:
        method, fault = _method_of(scope), scope.get("soma_eval.fault")
        self._metrics.observe_request("http", method, outcome, seconds, fault)
        is_job = "soma_eval.is_job" in scope  # which is noted at its end, whoever waits for it
        if scope["path"] in SCORING_PATHS and scope["method"] == "POST" and not is_job:
            self._metrics.last_hour.note(outcome, fault)
        quiet = status == HTTPStatus.TOO_MANY_REQUESTS or (_is_watching(scope) and status < 400)
        level = logging.DEBUG if quiet else logging.INFO
        log.log(level, "request", method=method, status=status, outcome=outcome, seconds=round(seconds, 4))


def _is_watching(scope: Scope) -> bool:
    return scope["path"] in OPEN_PATHS or scope["path"].startswith(STATUS_PATH)


def _verb_of(scope: Scope) -> str:
    return scope["method"] if scope["method"] in _VERBS else "OTHER"


def _method_of(scope: Scope) -> str:
    """Verb and route, the same for all requests of an operation."""
    routes = scope["soma_eval.routes"]
    return f"{_verb_of(scope)} {routes[0].path}" if routes else "unknown route"


def _span_of(scope: Scope) -> AbstractContextManager[tracing.Span]:
    """The span of the whole request, below its client's; probes and open status pages, which ask often, have none."""
    routes = scope["soma_eval.routes"]
    if not routes or _is_watching(scope):
        return tracing.NO_SPAN
    headers = {
        name: value.decode("latin-1")
        for raw_name, value in scope["headers"]
        if (name := raw_name.decode("latin-1")) in tracing.TRACE_HEADERS
    }
    attributes = {
        "http.request.method": _verb_of(scope),
        "http.route": routes[0].path,
        "url.scheme": scope["scheme"],
        "soma_eval.request_id": scope["soma_eval.request_id"],
    }
    return tracing.server_span(_method_of(scope), headers, attributes)


def _receive_again(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first gives the body that was read, then what the server sends next."""
    is_given = False

    async def receive_again() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
