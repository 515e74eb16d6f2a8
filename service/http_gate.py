"""What every HTTP request passes: a request id, the API key, the body's limit, a line of log."""

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable
from http import HTTPStatus

import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.config import Settings
from service.errors import BodyTooLarge, InvalidRequest, QueueFull, ScoringError, Unauthorized
from service.metrics import Metrics

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""These need no API key."""
SCORING_PATHS = frozenset({"/eval", "/score"})
BODY_TIMEOUT_SECONDS = 60.0
MAX_BODIES_AT_ONCE = 8
"""Bodies on their way hold at most as much memory as so many of the largest; smaller ones may be more."""
CLIENT_LEFT_STATUS = 499
"""Stands in the log for an answer that nobody was there to be given."""
_VERBS = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})

log = structlog.get_logger(__name__)


class ClientLeft(Exception):
    """The client closed its connection before its answer was there."""


def on_client_left(request: Request) -> Response:
    """What ends such a request; it goes nowhere."""
    request.scope["soma_eval.outcome"] = "client-left"
    return Response(status_code=CLIENT_LEFT_STATUS)


class Gate:
    """ASGI middleware around the whole application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        metrics: Metrics,
        check_room: Callable[[], None],
        refuse: Callable[[ScoringError, Request], Response],
    ) -> None:
        self._app = app
        self._max_body_bytes = settings.max_body_bytes
        self._num_bytes_coming = 0  # held of the bodies that have not come to their end
        self._key_digests = [_digest(key.get_secret_value()) for key in settings.api_keys]
        self._metrics = metrics
        self._check_room = check_room
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; other kinds of connection pass untouched."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope["soma_eval.request_id"] = request_id
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"x-request-id", request_id.encode())]
            await send(message)

        started = time.monotonic()
        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self._serve(scope, receive, send_with_id)
            finally:
                self._account(scope, status, time.monotonic() - started)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check_key(scope)
            body = b""  # nothing else has one; what is sent all the same is not read
            if scope["path"] in SCORING_PATHS and scope["method"] == "POST":
                self._check_room()
                body = await self._read_body(scope, receive)
                self._check_room()  # before the body is looked at: many may knock at once
        except ScoringError as error:
            await self._refuse(error, Request(scope))(scope, receive, send)
            return
        except ClientLeft:
            await on_client_left(Request(scope))(scope, receive, send)
            return
        # A bug is answered and logged by its place already; the server would log its words too.
        with contextlib.suppress(Exception):
            await self._app(scope, _replayed(body, receive), send)

    def _check_key(self, scope: Scope) -> None:
        if not self._key_digests or scope["path"] in OPEN_PATHS:
            return
        scheme, _, given = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(given.strip()).digest()
        matches = [hmac.compare_digest(digest, known) for known in self._key_digests]
        if scheme.lower() != b"bearer" or not any(matches):
            raise Unauthorized("send an API key this service knows as Authorization: Bearer")

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, counted as it comes. Raises ClientLeft when the client left before its end."""
        declared = dict(scope["headers"]).get(b"content-length", b"0")
        self._check_bytes(int(declared) if declared.isdigit() else 0)
        body = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_SECONDS):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientLeft
                    block = message.get("body", b"")
                    body += block
                    self._num_bytes_coming += len(block)
                    self._check_bytes(len(body))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            raise InvalidRequest(f"the body took longer than {BODY_TIMEOUT_SECONDS:g} s") from None
        finally:
            self._num_bytes_coming -= len(body)

    def _check_bytes(self, of_this_body: int) -> None:
        if of_this_body > self._max_body_bytes:
            raise BodyTooLarge(f"a request has at most {self._max_body_bytes} bytes")
        if self._num_bytes_coming > MAX_BODIES_AT_ONCE * self._max_body_bytes:
            raise QueueFull("too many requests are being sent at once")

    def _account(self, scope: Scope, status: int, seconds: float) -> None:
        route = scope.get("route")
        verb = scope["method"] if scope["method"] in _VERBS else "OTHER"
        method = f"{verb} {route.path}" if route else "unknown route"
        outcome = scope.get("soma_eval.outcome", "ok" if status < 400 else str(status))
        self._metrics.requests.labels("http", method, outcome).inc()
        self._metrics.request_seconds.labels("http", method).observe(seconds)
        quiet = status == HTTPStatus.TOO_MANY_REQUESTS or (scope["path"] in OPEN_PATHS and status < 400)
        level = logging.DEBUG if quiet else logging.INFO
        log.log(level, "request", method=method, status=status, outcome=outcome, seconds=round(seconds, 4))


def _replayed(body: bytes, receive: Receive) -> Receive:
    """A receive that gives the body already read, then whatever the connection says next."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()
