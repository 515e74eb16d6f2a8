"""What open pages are sent: each panel is rendered once when it changes, and all who watch get the same bytes."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

from service.log import log_bug

Collect = Callable[[], Awaitable[Mapping[str, object]]]
Render = Callable[[str, object, float], str]

TICK_SECONDS = 0.5
"""How often it is looked for changes while somebody watches."""
ALIVE_SECONDS = 5.0
"""After so long without a change a page is told that there is none; it takes longer silence for a lost connection."""


class Feed:
    """The panels of one page, as they are now. One event loop.

    It collects and renders only while somebody watches, or asks, and at most once in `TICK_SECONDS`.
    """

    def __init__(self, collect: Collect, render: Render, closing: asyncio.Event) -> None:
        """`collect`: the value of each panel. `render`: the HTML of one, from its name, its value and the time.

        `closing` is set when the service closes.
        """
        self._closing = closing
        self._collect = collect
        self._render = render
        self._values: dict[str, object] = {}
        self._rendered: dict[str, str] = {}
        """By panel: its HTML as JSON."""
        self._changed_at: dict[str, int] = {}
        """By panel: the version that changed it last."""
        self._version = 0
        self._collected_at = float("-inf")
        self._changed = asyncio.Event()
        self._collecting = asyncio.Lock()
        self._ticking: asyncio.Task[None] | None = None
        self._latest_event: tuple[int, int, bytes] | None = None
        self.num_watching = 0

    async def values(self) -> Mapping[str, object]:
        """The value of each panel now, or a tick ago. Raises what `collect` raises."""
        await self._refresh()
        return self._values

    async def panels(self) -> bytes:
        """All panels as JSON: `now` in seconds since 1970, and `panels` by name. Raises what `collect` raises."""
        await self._refresh()
        return self._payload(0)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Server-sent events: `panels` with all, then with those that changed; `alive` when nothing did.

        Ends when the service closes. Raises what `collect` raises at first.
        """
        await self._refresh()
        self.num_watching += 1
        try:
            if self._ticking is None:
                self._ticking = asyncio.create_task(self._tick())
            seen = 0
            while not self._closing.is_set():
                changed = self._changed
                if self._version > seen:
                    event, seen = self._event(seen), self._version
                    yield event
                    continue
                try:
                    async with asyncio.timeout(ALIVE_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    yield b"event: alive\ndata:\n\n"
        finally:
            self.num_watching -= 1
            if self.num_watching == 0 and self._ticking is not None:
                self._ticking.cancel()
                self._ticking = None

    async def _tick(self) -> None:
        while not self._closing.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_SECONDS):
                    await self._closing.wait()
            try:
                await self._refresh()
            except Exception as error:  # the next look may succeed
                log_bug(error)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def _refresh(self) -> None:
        async with self._collecting:
            if time.monotonic() - self._collected_at < TICK_SECONDS / 2:
                return
            values = await self._collect()
            self._collected_at = time.monotonic()
            changed = [name for name, value in values.items() if self._values.get(name) != value]
            if not changed:
                return
            self._version += 1
            for name in changed:
                self._values[name] = values[name]
                self._changed_at[name] = self._version
                self._rendered.pop(name, None)
            self._wake()

    def _event(self, seen: int) -> bytes:
        """For a page that has the panels of version `seen`; rendered once for all of these."""
        if self._latest_event is None or self._latest_event[:2] != (seen, self._version):
            event = b"event: panels\ndata: " + self._payload(seen) + b"\n\n"
            self._latest_event = (seen, self._version, event)
        return self._latest_event[2]

    def _payload(self, seen: int) -> bytes:
        changed = [name for name, version in self._changed_at.items() if version > seen]
        members = ",".join(f"{json.dumps(name)}:{self._html(name)}" for name in changed)
        return f'{{"now":{time.time():.3f},"panels":{{{members}}}}}'.encode()

    def _html(self, name: str) -> str:
        if name not in self._rendered:
            self._rendered[name] = json.dumps(self._render(name, self._values[name], time.time()))
        return self._rendered[name]
