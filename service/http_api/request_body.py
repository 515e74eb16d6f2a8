"""Reads the body of a request whole, within limits of memory and time, and refuses early what cannot be valid."""

import asyncio
import time
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.errors import BodyTooLarge, InvalidRequest, QueueFull

MAX_BODIES_AT_ONCE = 8
"""All bodies being received hold at most as much memory as this many of the largest size."""
MAX_VALUES = 100_000
"""Members and items in one body: more than any valid request of one evaluation or competition has."""
MAX_SCREEN_VALUES = 1_000_000
"""The same of a screen: a hundred targets of 2,048 numbers, and members of its pieces and models."""
BASE_TIMEOUT_SECONDS = 15.0
"""A body may take this long, plus the time that its bytes take at MIN_BYTES_PER_SECOND."""
MIN_BYTES_PER_SECOND = 64 << 10


@dataclass(eq=False, slots=True)
class _Incoming:
    """A body that is being received."""

    deadline: asyncio.Timeout
    started: float = field(default_factory=time.monotonic)
    num_bytes: int = 0
    is_dropped: bool = False

    def cost(self) -> float:
        """The memory it has taken over time, in byte seconds."""
        return self.num_bytes * (time.monotonic() - self.started)


class BodyReader:
    """Reads bodies. When all together hold too much memory, the one with the highest cost is dropped."""

    def __init__(
        self,
        max_body_bytes: int,
        *,
        max_values: int = MAX_VALUES,
        base_timeout_seconds: float = BASE_TIMEOUT_SECONDS,
    ) -> None:
        self._max_body_bytes = max_body_bytes
        self._max_values = max_values
        self._base_timeout_seconds = base_timeout_seconds
        self._incoming: set[_Incoming] = set()
        self._num_bytes = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body; parsing it as JSON is cheap.

        Raises InvalidRequest, BodyTooLarge, QueueFull when the body is dropped, or ClientDisconnect.
        """
        headers = dict(scope["headers"])
        _check_headers(headers)
        if _declared_length(headers) > self._max_body_bytes:
            raise self._too_large()
        body = await self._read(receive)
        _check_num_values(body, self._max_values)
        return body

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        incoming = _Incoming(asyncio.timeout(self._base_timeout_seconds))
        self._incoming.add(incoming)
        try:
            async with incoming.deadline:
                while True:
                    message = await receive()
                    if incoming.is_dropped:
                        raise TimeoutError
                    if message["type"] == "http.disconnect":
                        raise ClientDisconnect
                    block = message.get("body", b"")
                    body += block
                    self._grow(incoming, len(block))
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError:
            if incoming.is_dropped:
                raise QueueFull("too many requests are being sent at once; this one was too slow") from None
            raise InvalidRequest(
                f"the body was sent too slowly: it may take {self._base_timeout_seconds:g} s, "
                f"and a second more for every {MIN_BYTES_PER_SECOND} bytes"
            ) from None
        finally:
            self._forget(incoming)

    def _grow(self, incoming: _Incoming, num_bytes: int) -> None:
        incoming.num_bytes += num_bytes
        self._num_bytes += num_bytes
        if incoming.num_bytes > self._max_body_bytes:
            raise self._too_large()
        seconds = num_bytes / MIN_BYTES_PER_SECOND
        when = incoming.deadline.when()
        assert when is not None
        incoming.deadline.reschedule(when + seconds)
        while self._num_bytes > MAX_BODIES_AT_ONCE * self._max_body_bytes:
            costliest = max(self._incoming, key=_Incoming.cost)
            self._drop(costliest)
            if costliest is incoming:
                raise TimeoutError

    def _drop(self, incoming: _Incoming) -> None:
        self._forget(incoming)
        incoming.is_dropped = True
        incoming.deadline.reschedule(asyncio.get_running_loop().time())

    def _forget(self, incoming: _Incoming) -> None:
        if incoming in self._incoming:
            self._incoming.remove(incoming)
            self._num_bytes -= incoming.num_bytes

    def _too_large(self) -> BodyTooLarge:
        return BodyTooLarge(f"a request has at most {self._max_body_bytes} bytes")


def _check_headers(headers: dict[bytes, bytes]) -> None:
    media_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    is_json = media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )
    if not is_json:
        raise InvalidRequest("the body must be JSON, and sent with the header Content-Type: application/json")
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        raise InvalidRequest("the body must be sent without a Content-Encoding")


def _declared_length(headers: dict[bytes, bytes]) -> int:
    """0 where there is none. Any number of digits is accepted, though int() has a limit."""
    digits = headers.get(b"content-length", b"").lstrip(b"0")
    return int(digits[:20]) if digits.isdigit() else 0


def _check_num_values(body: bytes, max_values: int) -> None:
    """Refuse a body with more values than any valid request has: parsing it would delay every other request.

    Each value but the first follows a comma or an opening bracket, so these bytes are counted.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > max_values:
        raise InvalidRequest("the body has too many members and items")
