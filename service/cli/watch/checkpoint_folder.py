"""The checkpoints of a folder, and which of them are complete. Whoever writes them says nothing: so it is looked at.

A file is complete once size and times have stood still for a moment, and it is as long as its header says.
"""

import asyncio
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from service.cli.score.file_state import FileState, state_of
from service.errors import ScoringError
from workers.architectures import CURRENT_VERSION, load_architecture

ENDING = ".safetensors"
_LENGTH_BYTES = 8


class FileIncomplete(ScoringError):
    """A file is not as long as its own header says, or does not hold still: it is not evaluated."""

    title = "A file is incomplete"
    retryable = True

    @property
    def full_code(self) -> str:
        return "file-incomplete"


@dataclass(frozen=True, slots=True)
class Pace:
    """How often the folder is looked at, and what counts as standing still."""

    poll_seconds: float = 0.2
    settle_seconds: float = 0.8
    """Without a change, after which a file may be complete."""
    stalled_seconds: float = 60.0
    """Without a change, after which an incomplete file is said to be so."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One file as it was found."""

    path: Path
    state: FileState
    incomplete: str | None = None
    """Why it is not to be evaluated; None for a complete file."""


@dataclass(slots=True)
class _Seen:
    """What is known of a path."""

    state: FileState
    still_since: float
    is_taken: bool = False
    incomplete: str | None = None
    """Once its header has been looked at."""
    not_before: float = 0.0


class CheckpointFolder:
    """Finds the checkpoints in a folder and below it; hidden files and folders are left out. One event loop."""

    def __init__(
        self, folder: Path, pace: Pace | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._pace = pace or Pace()
        self._clock = clock
        self._seen: dict[Path, _Seen] = {}
        self._present: set[Path] = set()

    @property
    def present(self) -> frozenset[Path]:
        """The files that were there at the last look."""
        return frozenset(self._present)

    @property
    def waiting(self) -> list[Path]:
        """Those that have not been taken in their present state, the newest first."""
        waiting = [path for path in self._present if not self._seen[path].is_taken]
        return sorted(waiting, key=lambda path: self._seen[path].state.mtime_ns, reverse=True)

    async def look(self) -> None:
        """See what is there now."""
        states = await asyncio.to_thread(_scan, self._folder)
        now = self._clock()
        self._present = set(states)
        for path, state in states.items():
            seen = self._seen.get(path)
            if seen is None or seen.state != state:
                self._seen[path] = _Seen(state, now)

    async def take(self, *, at_once: bool = False) -> Checkpoint | None:
        """The newest file to deal with, each state of each file once; None where there is none yet.

        `at_once`: a file that is incomplete, or has not stood still so far, is not waited for.
        """
        for path in self.waiting:
            seen = self._seen[path]
            still_seconds = self._clock() - seen.still_since
            is_still = still_seconds >= self._pace.settle_seconds
            if self._clock() < seen.not_before or not (is_still or at_once):
                continue
            if not is_still:
                return self._taken(path, seen, "something is writing to it")
            if seen.incomplete is None:
                missing = await asyncio.to_thread(_what_is_missing, path, seen.state.size)
                if missing is None:
                    return self._taken(path, seen, None)
                seen.incomplete = missing
            if at_once or still_seconds >= self._pace.stalled_seconds:
                return self._taken(path, seen, seen.incomplete)
        return None

    def give_back(self, checkpoint: Checkpoint, seconds: float) -> None:
        """Have it taken once more, not before so many seconds have passed."""
        seen = self._seen[checkpoint.path]
        if seen.state == checkpoint.state:
            seen.is_taken = False
            seen.not_before = self._clock() + seconds

    def _taken(self, path: Path, seen: _Seen, incomplete: str | None) -> Checkpoint:
        seen.is_taken = True
        return Checkpoint(path, seen.state, incomplete)


def _scan(folder: Path) -> dict[Path, FileState]:
    """Every checkpoint and its state. What cannot be read is left out."""
    found = {}
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent, name)
            if name.endswith(ENDING) and not name.startswith(".") and path.is_file():
                state = state_of(path)
                if state is not None:
                    found[path] = state
    return found


def _what_is_missing(path: Path, size: int) -> str | None:
    """Why a file cannot be complete; None where it may be, or where its evaluation will say what is wrong with it."""
    rules = load_architecture(CURRENT_VERSION).weights_header
    try:
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            if size < _LENGTH_BYTES or header_bytes == 0:
                return f"it has {size:,} bytes, and no header yet"
            if header_bytes > rules.MAX_HEADER_BYTES:
                return None  # no header of safetensors at all
            end = _LENGTH_BYTES + header_bytes
            if end > size:
                return f"it has {size:,} bytes, its header alone {end:,}"
            described = rules.declared_size(file.read(header_bytes))
    except OSError:
        return None
    if described is None or size >= described:
        return None
    return f"it has {size:,} bytes of the {described:,} that its header describes"
