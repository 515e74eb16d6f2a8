"""How the service is asked to end: in good order by a first SIGTERM or SIGINT, at once by a second one."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_URGENT_SECONDS = 10
"""For ending workers and removing files after the second signal. The system ends this process after that."""


class Shutdown:
    """What was asked for so far."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.urgent = asyncio.Event()
        """Nothing that may be cut short is waited for any more."""
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
        for again in (signal.SIGTERM, signal.SIGINT):  # a third one is left to the system
            asyncio.get_running_loop().remove_signal_handler(again)
            signal.signal(again, signal.SIG_DFL)

    @asynccontextmanager
    async def when_urgent(self, cut_short: Callable[[], object]) -> AsyncIterator[None]:
        """Call `cut_short` once it is urgent, if that happens within the block."""
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._call_when_urgent(cut_short))
            yield
            watching.cancel()

    async def _call_when_urgent(self, cut_short: Callable[[], object]) -> None:
        await self.urgent.wait()
        cut_short()
