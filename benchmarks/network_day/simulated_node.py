"""A node of the simulated cluster: the files that it was sent, least recently used out first, and the way to it."""

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field

from benchmarks.network_day.shared_resource import SharedResource


@dataclass(eq=False)
class SimulatedNode:
    """Stands for `FileSender`, `RelayActor` and `NodeFiles`: a file is sent once, however many ask for it."""

    name: str
    link: SharedResource
    """From the head to all nodes, in bytes."""
    max_bytes: int
    seconds_per_file: float = 0.0
    """On top of the link's: questions and answers, and the disk."""
    files: OrderedDict[str, int] = field(default_factory=OrderedDict)
    """Bytes by checksum."""
    _under_way: dict[str, asyncio.Task[None]] = field(default_factory=dict)

    async def bring(self, checksum: str, size: int) -> None:
        """Return once the file is here."""
        while checksum not in self.files:
            sending = self._under_way.get(checksum)
            if sending is None:
                sending = self._under_way[checksum] = asyncio.create_task(self._send(checksum, size))
            await asyncio.shield(sending)
        self.files.move_to_end(checksum)

    def cut_off(self) -> None:
        """Nothing arrives any more."""
        for sending in self._under_way.values():
            sending.cancel()

    async def _send(self, checksum: str, size: int) -> None:
        try:
            await asyncio.sleep(self.seconds_per_file)
            await self.link.use(size)
            while self.files and sum(self.files.values()) + size > self.max_bytes:
                self.files.popitem(last=False)
            self.files[checksum] = size
        finally:
            del self._under_way[checksum]
