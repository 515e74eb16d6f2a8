"""HTTP/1.1 from the socket: uvicorn's fast parser, with the bounds on heads, trailers and connections it lacks."""

import asyncio
import secrets
from collections import OrderedDict
from http import HTTPStatus
from typing import ClassVar
from weakref import WeakKeyDictionary

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.errors import InvalidRequest
from service.http_api.app import PROBLEM_JSON
from service.http_api.schemas import Problem
from service.log import Seldom

MAX_HEAD_BYTES = 512 << 10
"""What a request may bring beside its body: far above what any client sends, and above what one read brings
(256 KiB), for the next request's bytes may come along in it."""
HEAD_SECONDS = 15.0
"""How long a head may take: the first from the connection on, a later one from its first byte."""
UNREAD_BODY_SECONDS = 60.0
"""How long a client may go on sending the body of a request that is answered already."""
UNREAD_ANSWER_SECONDS = 60.0
"""How long a client may leave what was sent to it unread, once no more fits into the connection."""

_MAX_BYTES_PER_BODY_BYTE = 8
"""A body sent in chunks of one byte takes six for each."""

log = structlog.get_logger(__name__)
_too_many = Seldom()


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. It is cut off when a request brings more head, framing and trailers than it may, or too slowly.

    Above `max_connections`, the one that has kept the service waiting the longest is closed: for a request, for the
    rest of one, or for room to send an answer. Where every one is being worked for, it is the new one.
    """

    max_connections: ClassVar[int] = 8192
    """A subclass lowers it to what this process may open."""
    _waiting: ClassVar["WeakKeyDictionary[ServerState, OrderedDict[BoundedHttpProtocol, None]]"] = (
        WeakKeyDictionary()
    )
    """Of each server, the connections on which it waits for the client, the longest first."""
    _allowance = MAX_HEAD_BYTES
    _deadline: asyncio.TimerHandle | None = None
    _in_message = False
    """Between the end of a request's head and the end of its body."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected."""
        super().connection_made(transport)
        self._expect_within(HEAD_SECONDS)
        self._wait_for_client()
        if len(self.connections) > self.max_connections:
            if _too_many.may_speak():
                log.warning("too many connections: the idlest are closed", open=len(self.connections) - 1)
            self._close_idlest()

    def _close_idlest(self) -> None:
        idlest, _ = self._waiting[self.server_state].popitem(last=False)
        self.connections.discard(idlest)  # now, for its end is only heard of after others have connected
        idlest.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended, on whichever side."""
        self._expect_nothing()
        self._waiting[self.server_state].pop(self, None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """More bytes from the client."""
        if self._deadline is None and self._all_answered():
            self._expect_within(UNREAD_BODY_SECONDS if self._in_message else HEAD_SECONDS)
        super().data_received(data)
        self._allowance -= len(data)
        if self._allowance < 0:
            self.transport.abort()

    def on_message_begin(self) -> None:
        """A request begins. One that does not wait for the answer to the one before ends the connection.

        It would have to be kept unread until then, and so would the client's leaving.
        """
        if not self._all_answered():
            self.transport.abort()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is here: it is answered from now on, while its body may still come."""
        if self.transport.is_closing():
            return
        self._in_message = True
        if not self.flow.write_paused:
            self._expect_nothing()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Bytes of the body, which are bounded elsewhere."""
        if self.transport.is_closing():
            return
        self._allowance += _MAX_BYTES_PER_BODY_BYTE * len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has ended; another may follow."""
        if self.transport.is_closing():
            return
        self._allowance = MAX_HEAD_BYTES
        self._in_message = False
        if self._all_answered():  # it was answered before its end: nothing else bounds the wait for the next
            self._expect_within(HEAD_SECONDS)
        elif not self.flow.write_paused:
            self._waiting[self.server_state].pop(self, None)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """The request is answered."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._expect_within(UNREAD_ANSWER_SECONDS)
        self._wait_for_client()

    def pause_writing(self) -> None:
        """The client does not read what is sent to it."""
        super().pause_writing()
        self._expect_within(UNREAD_ANSWER_SECONDS)
        self._wait_for_client()

    def resume_writing(self) -> None:
        """The client reads again."""
        super().resume_writing()
        self._expect_nothing()
        if self._in_message:
            if self._all_answered():
                self._expect_within(UNREAD_BODY_SECONDS)
        elif not self._all_answered():
            self._waiting[self.server_state].pop(self, None)

    def send_400_response(self, msg: str) -> None:
        """Answer what cannot be read as HTTP, in the shape of every other error, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            if (
                self.cycle.response_started or not self._in_message
            ):  # this would be read as a part of that answer
                self.transport.abort()
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        request_id = secrets.token_hex(8)
        problem = Problem(
            type=f"urn:soma-eval:problem:{InvalidRequest.code}",
            title=InvalidRequest.title,
            status=HTTPStatus.BAD_REQUEST,
            detail="what was sent is not HTTP/1.1",
            instance="/",
            code=InvalidRequest.code,
            fault="client",
            blob=None,
            model_index=None,
            retryable=False,
            request_id=request_id,
        )
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

    def _all_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _wait_for_client(self) -> None:
        waiting = self._waiting.setdefault(self.server_state, OrderedDict())
        waiting[self] = None
        waiting.move_to_end(self)

    def _expect_within(self, seconds: float) -> None:
        self._expect_nothing()
        self._deadline = self.loop.call_later(seconds, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
