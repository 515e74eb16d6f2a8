"""Server-sent events, however they are cut."""

import itertools

import pytest

from soma_eval.errors import UnexpectedResponse
from soma_eval.event_stream import EventStream

STREAM = (
    b'event: progress\ndata: {"a": 1}\n\n: a comment\nid: 7\ndata:first\r\ndata: second\r\n\r\n'
    b"retry: 5\n\ndata: left"
)


@pytest.mark.parametrize("size", [1, 2, 7, len(STREAM)])
def test_events_are_read_however_they_are_cut(size: int) -> None:
    events = EventStream(1000)
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert [data for chunk in chunks for data in events.feed(chunk)] == [b'{"a": 1}', b"first\nsecond"]


@pytest.mark.parametrize("chunk", [b"x" * 100, b"data: x\n" * 20])
def test_an_endless_event_is_refused(chunk: bytes) -> None:
    events = EventStream(1000)
    with pytest.raises(UnexpectedResponse, match="longer"):
        list(itertools.chain.from_iterable(events.feed(chunk) for _ in range(100)))
