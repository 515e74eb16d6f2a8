"""The leaderboards of `soma-eval watch` that lie in the data folder, as the status page shows them."""

import asyncio
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from service.daemon_thread import run_in_daemon_thread
from service.leaderboards import ENDING, FOLDER_NAME, Board

MAX_BOARDS = 4
"""That are shown, the last to change first."""
MAX_AGE_SECONDS = 7 * 86_400.0
"""Without a change, after which one is no longer shown."""
LOOK_AGAIN_SECONDS = 2.0
_WAIT_SECONDS = 0.5
_MAX_FILES = 1_000
_MAX_BYTES = 1 << 20

_board = TypeAdapter(Board)


class LeaderboardList:
    """Reads the files again every few seconds. A disk that hangs keeps nobody waiting. One event loop."""

    def __init__(self, data_dir: Path) -> None:
        self._folder = data_dir / FOLDER_NAME
        self._boards: tuple[Board, ...] = ()
        self._looked_at = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    async def read(self) -> tuple[Board, ...]:
        """Those of the last look."""
        if self._looking is None and time.monotonic() - self._looked_at >= LOOK_AGAIN_SECONDS:
            self._looking = asyncio.create_task(self._look())
            await asyncio.wait([self._looking], timeout=_WAIT_SECONDS)
        return self._boards

    async def _look(self) -> None:
        try:
            self._boards = await run_in_daemon_thread(lambda: read_boards(self._folder, time.time()))
        finally:
            self._looked_at, self._looking = time.monotonic(), None


def read_boards(folder: Path, now: float) -> tuple[Board, ...]:
    """The newest leaderboards of a folder. What is too old, damaged, or of another version is left out. Blocks."""
    boards = [board for board in _boards_in(folder) if -60.0 < now - board.changed < MAX_AGE_SECONDS]
    return tuple(sorted(boards, key=lambda board: -board.changed)[:MAX_BOARDS])


def _boards_in(folder: Path) -> Iterator[Board]:
    try:
        names = os.listdir(folder)
    except OSError:  # no watch has ever written one
        return
    for name in names[:_MAX_FILES]:
        if name.endswith(ENDING) and not name.startswith("."):
            try:
                yield _board.validate_json(_contents(folder / name))
            except (OSError, ValidationError):
                continue


def _contents(path: Path) -> bytes:
    """Nothing for what no watch has written: a pipe, a large file. Raises OSError, for a link too."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        state = os.fstat(descriptor)
        is_ours = stat.S_ISREG(state.st_mode) and state.st_size <= _MAX_BYTES
        return file.read(_MAX_BYTES) if is_ours else b""
