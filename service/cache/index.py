"""Which files the cache holds, in order of their last use, with running totals.

Every operation costs the same however many files there are.
"""

import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

SMALL_BYTES = 1 << 20
"""Up to this size a file is evicted for its inode."""


@dataclass(eq=False, slots=True)
class Entry:
    """One file in the cache: a blob, or the rest of a download that was interrupted."""

    folder: Path
    name: str
    size: int
    last_used: float
    num_pins: int = 0
    urls: tuple[str, ...] | None = None
    """Digests of the URLs that have delivered these bytes, the latest last; None: not read from disk yet."""

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self.folder / self.name

    @property
    def is_small(self) -> bool:
        """Whether the file takes an inode rather than room."""
        return self.size <= SMALL_BYTES


class CacheIndex:
    """The entries by file name. One that is not pinned is idle: it may be evicted, the least recently used first."""

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

    def add(self, entry: Entry) -> None:
        """List an entry, as the one used last."""
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
        """Keep an entry from being evicted, once more."""
        if entry.num_pins == 0 and self.holds(entry):
            self._remove_idle(entry)
        entry.num_pins += 1

    def unpin(self, entry: Entry) -> None:
        """Take one pin back. After the last the entry is the one used last."""
        entry.num_pins -= 1
        if entry.num_pins == 0 and self.holds(entry):
            entry.last_used = time.time()
            self._add_idle(entry)

    def least_recently_used(self, *, small: bool = False) -> Entry | None:
        """The idle entry to evict first; with `small`, the first of the small ones, if there is any."""
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
