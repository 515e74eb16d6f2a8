"""Whether the cache's disk works: probed after a write has failed, and again until a write succeeds."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from service.cache.disk_budget import DiskBudget
from service.download.file_threads import FileThreads
from service.errors import InsufficientStorage, OutOfResources, exhaustion_of

_PROBE_BYTES = 4096
_DOES_NOT_WORK = "the disk of this machine does not work"


class DiskHealth:
    """A failed write may be due to the size of one file; if a small file cannot be written, the disk is at fault."""

    def __init__(
        self, budget: DiskBudget, threads: FileThreads, folder: Path, *, retry_seconds: float
    ) -> None:
        self.trouble: str | None = None
        """What is wrong with the disk, for people; None while it works."""
        self._budget = budget
        self._threads = threads
        self._folder = folder
        self._retry_seconds = retry_seconds
        self._watcher: asyncio.Task[None] | None = None

    async def close(self) -> None:
        """Stop probing."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)

    @contextlib.contextmanager
    def translate_errors(self) -> Iterator[None]:
        """Raise a ServiceTrouble for an error of the disk or the system: no publisher is at fault."""
        try:
            yield
        except OSError as error:
            self._suspect()
            raise exhaustion_of(error) or OutOfResources(_DOES_NOT_WORK) from error
        except (RuntimeError, MemoryError) as error:
            if (trouble := exhaustion_of(error)) is not None:
                raise trouble from error
            raise
        except InsufficientStorage as error:
            if isinstance(error.__cause__, OSError):
                self._suspect()
            raise

    def _suspect(self) -> None:
        """A write has failed: begin to probe."""
        if self._watcher is None or self._watcher.done():
            self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (found := await self._probe()) is not None:
            self.trouble = found
            await asyncio.sleep(self._retry_seconds)
        self.trouble = None

    async def _probe(self) -> str | None:
        path = self._folder / f"probe{secrets.token_hex(8)}.part"
        try:
            await self._budget.retry_when_full(lambda: self._threads.run(_write_and_delete, path))
        except InsufficientStorage as error:
            return error.detail
        except OSError as error:
            trouble = exhaustion_of(error)
            return trouble.detail if trouble is not None else _DOES_NOT_WORK
        return None


def _write_and_delete(path: Path) -> None:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(bytes(_PROBE_BYTES))
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
