"""What pages are sent: only what has changed, rendered once for all of them."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from service.http_api.status_page import feed as feed_module
from service.http_api.status_page.feed import Feed


class Source:
    """Panels that a test changes, and how often they were rendered."""

    def __init__(self) -> None:
        self.panels: dict[str, object] = {"a": 1, "b": 1}
        self.rendered: list[str] = []
        self.num_collected = 0
        self.error: Exception | None = None

    async def collect(self) -> Mapping[str, object]:
        self.num_collected += 1
        if self.error:
            raise self.error
        return dict(self.panels)

    def render(self, name: str, value: object, now: float) -> str:
        self.rendered.append(f"{name}{value}")
        return f"<p>{name}{value}</p>"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "TICK_SECONDS", 0.01)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def closing() -> asyncio.Event:
    return asyncio.Event()


@pytest.fixture
def feed(source: Source, closing: asyncio.Event) -> Feed:
    return Feed(source.collect, source.render, closing)


def panels_of(event: bytes) -> dict[str, Any]:
    kind, data = event.decode().strip().split("\n")
    assert kind == "event: panels"
    panels: dict[str, Any] = json.loads(data.removeprefix("data: "))["panels"]
    return panels


async def test_all_panels_and_then_those_that_changed(feed: Feed, source: Source) -> None:
    events = feed.events()
    assert panels_of(await anext(events)) == {"a": "<p>a1</p>", "b": "<p>b1</p>"}
    source.panels["b"] = 2
    assert panels_of(await anext(events)) == {"b": "<p>b2</p>"}
    await events.aclose()


async def test_a_panel_is_rendered_once_for_all_who_watch(feed: Feed, source: Source) -> None:
    streams = [feed.events() for _ in range(20)]
    for stream in streams:
        await anext(stream)
    source.panels["a"] = 2
    news = await asyncio.gather(*(anext(stream) for stream in streams))
    assert {event.partition(b'"panels"')[2] for event in news} == {b':{"a":"<p>a2</p>"}}\n\n'}
    assert source.rendered == ["a1", "b1", "a2"]
    for stream in streams:
        await stream.aclose()


async def test_who_was_slow_gets_the_latest_state_of_all_it_missed(feed: Feed, source: Source) -> None:
    slow, quick = feed.events(), feed.events()
    await anext(slow)
    await anext(quick)
    for name, value in (("a", 2), ("b", 2), ("a", 3)):
        source.panels[name] = value
        await anext(quick)
    assert panels_of(await anext(slow)) == {"a": "<p>a3</p>", "b": "<p>b2</p>"}
    await slow.aclose()
    await quick.aclose()


async def test_silence_is_broken(feed: Feed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "ALIVE_SECONDS", 0.02)
    events = feed.events()
    await anext(events)
    assert await anext(events) == b"event: alive\ndata:\n\n"
    await events.aclose()


async def test_nothing_is_collected_while_nobody_watches(feed: Feed, source: Source) -> None:
    events = feed.events()
    await anext(events)
    await events.aclose()
    assert feed.num_watching == 0
    num_collected = source.num_collected
    await asyncio.sleep(0.1)
    assert source.num_collected == num_collected


async def test_streams_end_when_the_service_closes(feed: Feed, closing: asyncio.Event) -> None:
    events = feed.events()
    await anext(events)
    closing.set()
    assert [event async for event in events] == []


async def test_an_error_is_raised_at_first_and_passes_later(feed: Feed, source: Source) -> None:
    source.error = ValueError("not now")
    with pytest.raises(ValueError, match="not now"):
        await feed.panels()
    source.error = None
    events = feed.events()
    await anext(events)
    source.error = ValueError("not now")
    await asyncio.sleep(0.05)
    source.error = None
    source.panels["a"] = 5
    assert panels_of(await anext(events)) == {"a": "<p>a5</p>"}
    await events.aclose()
