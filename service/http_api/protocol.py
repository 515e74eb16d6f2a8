"""HTTP/1.1 on one connection: uvicorn's, with limits for heads, trailers, pipelining and idle connections.

Extends a private class of uvicorn; docs/decisions/0021-http-protocol.md says why, and for which versions.
"""

import asyncio
import secrets
from collections import OrderedDict
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import InvalidRequest
from service.http_api.problems import PROBLEM_JSON, problem_of
from service.log import RateLimit

_MAX_BYTES_PER_BODY_BYTE = 8
"""A body sent in chunks of one byte takes six for each."""

log = structlog.get_logger(__name__)
_warnings = RateLimit()


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What connections may hold without being worked for."""

    max_connections: int = 8192
    max_head_bytes: int = 512 << 10
    """Of a request beside its body. Above one read of the transport (256 KiB), which may hold the next request too."""
    head_timeout_seconds: float = 15.0
    """For a request's head: the first from the connection on, a later one from its first byte."""
    unread_body_timeout_seconds: float = 60.0
    """For the rest of the body of a request that has its response already."""
    unread_response_timeout_seconds: float = 60.0
    """For a client to read what was sent, once the buffers of the connection are full."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. It is aborted when a request exceeds `max_head_bytes` or a timeout.

    Above `max_connections`, the connection that has waited for its client the longest is aborted: for a request, for
    the rest of one, or for reading a response. When none waits for its client, the new one is aborted.
    """

    _waiting: ClassVar["WeakKeyDictionary[ServerState, OrderedDict[BoundedHttpProtocol, None]]"] = (
        WeakKeyDictionary()
    )
    """Of each server, the connections that wait for their client, the longest first."""

    def __init__(self, limits: HttpLimits, **given_by_the_server: Any) -> None:
        super().__init__(**given_by_the_server)
        self._limits = limits
        self._allowance = limits.max_head_bytes
        self._timeout: asyncio.TimerHandle | None = None
        self._in_body = False
        """Between the end of a request's head and the end of its body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._abort_after(self._limits.head_timeout_seconds)
        self._wait_for_client()
        if len(self.connections) > self._limits.max_connections:
            if _warnings.permits():
                log.warning(
                    "too many connections: those idle the longest are closed", open=len(self.connections) - 1
                )
            self._abort_idlest()

    def _abort_idlest(self) -> None:
        idlest, _ = self._waiting[self.server_state].popitem(last=False)
        self.connections.discard(idlest)  # its `connection_lost` is called only after others have connected
        idlest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is closed, by either side."""
        self._cancel_timeout()
        self._waiting[self.server_state].pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Bytes from the client."""
        super().data_received(data)
        if self._timeout is None and self._has_responded():  # they are the beginning of a head, or of no use
            limits = self._limits
            self._abort_after(
                limits.unread_body_timeout_seconds if self._in_body else limits.head_timeout_seconds
            )
        self._allowance -= len(data)
        if self._allowance < 0:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins. Pipelining aborts the connection.

        A pipelined request would not be read before the response to the one before it, and neither would a
        disconnect of the client be noticed, so its work could not be cancelled.
        """
        if not self._has_responded():
            self.transport.abort()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The head is complete; the application starts, while the body may still be received."""
        if self.transport.is_closing():
            return
        self._in_body = True
        if not self.flow.write_paused:
            self._cancel_timeout()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of the body, whose number and time `request_body` limits."""
        if self.transport.is_closing():
            return
        self._allowance += _MAX_BYTES_PER_BODY_BYTE * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is complete; another may follow."""
        if self.transport.is_closing():
            return
        self._allowance = self._limits.max_head_bytes
        self._in_body = False
        if self._has_responded():
            # It did so before the request was complete, so nothing else limits the wait for the next one.
            self._abort_after(self._limits.head_timeout_seconds)
        elif not self.flow.write_paused:
            self._waiting[self.server_state].pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The response is complete."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._abort_after(self._limits.unread_response_timeout_seconds)
        self._wait_for_client()

    def pause_writing(self) -> None:
        """The buffers are full: the client does not read."""
        super().pause_writing()
        self._abort_after(self._limits.unread_response_timeout_seconds)
        self._wait_for_client()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._cancel_timeout()
        if self._in_body:
            if self._has_responded():
                self._abort_after(self._limits.unread_body_timeout_seconds)
        elif not self._has_responded():
            self._waiting[self.server_state].pop(self, None)

    def send_400_response(self, msg: str) -> None:
        """Respond to what is not HTTP with a problem, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started or not self._in_body:
                self.transport.abort()  # the client would read these bytes as part of another response
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        request_id = secrets.token_hex(8)
        error = InvalidRequest("what was sent is not HTTP/1.1")
        problem = problem_of(error, path="/", request_id=request_id, status=HTTPStatus.BAD_REQUEST)
        body = problem.model_dump_json()
        lines = [
            "HTTP/1.1 400 Bad Request",
            f"content-type: {PROBLEM_JSON}",
            f"content-length: {len(body)}",
            f"x-request-id: {request_id}",
            "connection: close",
        ]
        self.transport.write("\r\n".join([*lines, "", body]).encode())
        self.transport.close()

    def _has_responded(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_client(self) -> None:
        waiting = self._waiting.setdefault(self.server_state, OrderedDict())
        waiting[self] = None
        waiting.move_to_end(self)

    def _abort_after(self, seconds: float) -> None:
        self._cancel_timeout()
        self._timeout = self.loop.call_later(seconds, self.transport.abort)

    def _cancel_timeout(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None
