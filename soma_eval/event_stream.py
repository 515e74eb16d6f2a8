"""Server-sent events from the bytes of a stream: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from collections.abc import Iterator

from .errors import UnexpectedResponse


class EventStream:
    """Takes a stream as it is received; gives the data of each event that is complete.

    Names and ids of events and comments are skipped: the data say everything.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()
        self._data: list[bytes] = []

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The data of the events that end within this chunk. Raises UnexpectedResponse for one that is too long."""
        *ends, rest = chunk.split(b"\n")
        for end in ends:
            line = bytes(self._line + end).removesuffix(b"\r")
            self._line.clear()
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                yield b"\n".join(self._data)
                self._data = []
        self._line += rest
        if len(self._line) + sum(map(len, self._data)) > self._max_event_bytes:
            raise UnexpectedResponse(f"an event is longer than {self._max_event_bytes >> 20} MiB")
