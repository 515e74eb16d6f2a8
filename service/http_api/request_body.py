"""The body of a request: read whole, within bounds of memory and time, and refused early where it cannot be good."""

import asyncio
import time
from dataclasses import dataclass, field

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from service.errors import BodyTooLarge, InvalidRequest, QueueFull

MAX_BODIES_AT_ONCE = 8
"""Bodies on their way hold at most as much memory as so many of the largest; smaller ones may be more."""
MAX_VALUES = 100_000
"""Members and items in one body: more than the largest target and the most manifests have together."""
BASE_TIMEOUT_SECONDS = 15.0
"""Every body may take this long, and as much more as its bytes take at MIN_BYTES_PER_SECOND."""
MIN_BYTES_PER_SECOND = 64 << 10


@dataclass(eq=False, slots=True)
class _Incoming:
    """A body that has not come to its end."""

    deadline: asyncio.Timeout
    started: float = field(default_factory=time.monotonic)
    num_bytes: int = 0
    is_dropped: bool = False

    def cost(self) -> float:
        """What it has taken of the memory so far, in byte seconds."""
        return self.num_bytes * (time.monotonic() - self.started)


class BodyReader:
    """Reads bodies. Where all that are on their way hold too much, the one that has cost the most is dropped."""

    def __init__(self, max_body_bytes: int, *, base_timeout_seconds: float = BASE_TIMEOUT_SECONDS) -> None:
        self._max_body_bytes = max_body_bytes
        self._base_timeout_seconds = base_timeout_seconds
        self._incoming: set[_Incoming] = set()
        self._num_bytes = 0

    async def read(self, scope: Scope, receive: Receive) -> bytes:
        """The whole body, as JSON that may be parsed without harm.

        Raises InvalidRequest, BodyTooLarge, QueueFull when the body is dropped, or ClientDisconnect.
        """
        headers = dict(scope["headers"])
        _check_headers(headers)
        if _declared_length(headers) > self._max_body_bytes:
            raise self._too_large()
        body = await self._read(receive)
        _check_num_values(body)
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
                raise QueueFull(
                    "too many requests are being sent at once; this one came too slowly"
                ) from None
            raise InvalidRequest(
                f"the body came too slowly: it may take {self._base_timeout_seconds:g} s, "
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
        raise InvalidRequest("the body must be sent as it is, without a Content-Encoding")


def _declared_length(headers: dict[bytes, bytes]) -> int:
    """0 where it is not told. However many digits it has, it is read without an error."""
    digits = headers.get(b"content-length", b"").lstrip(b"0")
    return int(digits[:20]) if digits.isdigit() else 0


def _check_num_values(body: bytes) -> None:
    """Parsing holds up every other request, so what has more values than any good request is not parsed.

    Counted are the bytes that come before each value but the first of all; within strings they are rare.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > MAX_VALUES:
        raise InvalidRequest("the body has too many members and items")
