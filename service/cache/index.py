"""The files of the cache in order of their last use, with running totals.

Every operation takes constant time.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

PARTIAL_SUFFIX = ".part"
_SMALL_BYTES = 1 << 20
"""Up to this size a file is evicted when inodes are short."""


@dataclass(eq=False, slots=True)
class Entry:
    """One file in the cache: a blob, or the partial file of an interrupted download."""

    folder: Path
    name: str
    size: int
    last_used: float
    num_pins: int = 0
    urls: tuple[str, ...] | None = None
    """Digests of the URLs that have delivered these bytes, the latest last; None until they are read from disk."""

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.folder / self.name

    @property
    def is_partial(self) -> bool:
        """Whether this is the file of an interrupted download."""
        return self.name.endswith(PARTIAL_SUFFIX)

    @property
    def is_small(self) -> bool:
        """Whether the file's inode matters more than its bytes."""
        return self.size <= _SMALL_BYTES


class CacheIndex:
    """The entries by file name. An entry without pins is idle: it may be evicted, the least recently used first."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._idle: dict[bool, OrderedDict[Entry, None]] = {True: OrderedDict(), False: OrderedDict()}
        self.total_bytes = 0
        self.idle_bytes = 0

    def get(self, name: str) -> Entry | None:
        """The entry with this file name."""
        return self._entries.get(name)

    def holds(self, entry: Entry) -> bool:
        """Whether this very entry is still listed."""
        return self._entries.get(entry.name) is entry

    def is_idle(self, entry: Entry) -> bool:
        """Whether this very entry is listed and may be evicted."""
        return entry.num_pins == 0 and self.holds(entry)

    def add(self, entry: Entry) -> None:
        """List an entry as the most recently used."""
        self._entries[entry.name] = entry
        self.total_bytes += entry.size
        if entry.num_pins == 0:
            self._add_idle(entry)

    def remove(self, entry: Entry) -> None:
        """Forget an entry, pinned or not."""
        if not self.holds(entry):
            return
        del self._entries[entry.name]
        self.total_bytes -= entry.size
        if entry.num_pins == 0:
            self._remove_idle(entry)

    def pin(self, entry: Entry) -> None:
        """Add a pin: the entry is not evicted while it has one."""
        if entry.num_pins == 0 and self.holds(entry):
            self._remove_idle(entry)
        entry.num_pins += 1

    def unpin(self, entry: Entry) -> None:
        """Remove a pin. After the last one the entry counts as the most recently used."""
        entry.num_pins -= 1
        if entry.num_pins == 0 and self.holds(entry):
            entry.last_used = time.time()
            self._add_idle(entry)

    def least_recently_used(self, *, small: bool = False) -> Entry | None:
        """The idle entry to evict first; with `small`, preferably a small one."""
        first = [next(iter(idle)) for idle in self._idle.values() if idle]
        if small and self._idle[True]:
            return next(iter(self._idle[True]))
        return min(first, key=lambda entry: entry.last_used, default=None)

    def _add_idle(self, entry: Entry) -> None:
        self._idle[entry.is_small][entry] = None
        self.idle_bytes += entry.size

    def _remove_idle(self, entry: Entry) -> None:
        del self._idle[entry.is_small][entry]
        self.idle_bytes -= entry.size
