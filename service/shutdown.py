"""Shutdown by signals: a first SIGTERM or SIGINT requests it, a second one makes it urgent."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_URGENT_SECONDS = 10
"""For ending workers and removing files after the second signal. The system ends this process after that."""


class Shutdown:
    """Whether a shutdown is requested, and whether it is urgent."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.urgent = asyncio.Event()
        """Running work is cancelled rather than waited for."""
        self.exit_code = 0

    def listen(self) -> None:
        """Take over SIGTERM and SIGINT on the running event loop."""
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: signal.Signals) -> None:
        if not self.requested.is_set():
            self.requested.set()
            return
        self.exit_code = 128 + number
        self.urgent.set()
        signal.alarm(_URGENT_SECONDS)
        for again in (signal.SIGTERM, signal.SIGINT):  # a third signal has the system's own effect
            asyncio.get_running_loop().remove_signal_handler(again)
            signal.signal(again, signal.SIG_DFL)

    @asynccontextmanager
    async def when_urgent(self, cancel: Callable[[], object]) -> AsyncIterator[None]:
        """Call `cancel` when the shutdown becomes urgent within the block."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._call_when_urgent(cancel))
            yield
            watching.cancel()

    async def _call_when_urgent(self, cancel: Callable[[], object]) -> None:
        await self.urgent.wait()
        cancel()
