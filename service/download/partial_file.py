"""A file on its way in: where its bytes lie, which are here, and a note that lets another attempt go on.

Bytes may come in any order and from several connections; their checksum follows. All file work happens in
threads.
"""

import asyncio
import contextlib
import errno
import json
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar

from service.download.file_threads import FileThreads
from service.download.ordered_hash import Buffers, OrderedHash
from service.errors import InsufficientStorage

P = ParamSpec("P")
T = TypeVar("T")

Span = tuple[int, int]
"""Bytes from the first up to, not including, the second."""

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


_ALLOCATED_AHEAD_WRITES = 4
"""The disk's room is taken for so many writes at once."""


class Space(Protocol):
    """Who gives out the room on the disk."""

    async def expect(self, num_bytes: int) -> None:
        """The file will have `num_bytes` in all. Raises InsufficientStorage if it never fits."""

    async def take(self, num_bytes: int) -> None:
        """The file takes `num_bytes` of the disk now. Raises InsufficientStorage."""

    async def with_room(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do what needs room on the disk, as often as it takes. Raises InsufficientStorage, OSError."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the bytes of a partial file come from, as far as it tells whether more may be added to them."""

    total: int | None = None
    etag: str | None = None


class PartialFile:
    """One file being written, read and hashed. Owned by one task; `close` before letting go of it."""

    def __init__(
        self,
        path: Path,
        space: Space,
        threads: FileThreads,
        *,
        is_resumable: bool,
        checkpoint_bytes: int,
        write_bytes: int,
    ) -> None:
        self.path = path
        self.done: list[Span] = []
        self.origin: Origin | None = None
        self.was_resumed = False
        self._sidecar = path.with_suffix(".json")
        self._space = space
        self._threads = threads
        self._is_resumable = is_resumable
        self._checkpoint_bytes = checkpoint_bytes
        self._checkpointed_bytes = 0
        self._fd = -1
        self._reserved = 0
        self._allocated: list[Span] = []
        self._step_bytes = write_bytes * _ALLOCATED_AHEAD_WRITES
        self._sync_error: OSError | None = None
        self._jobs: set[asyncio.Future[Any]] = set()
        self.buffers = Buffers(write_bytes)
        self._hash: OrderedHash | None = None
        self._follower: asyncio.Task[None] | None = None

    # -- life ------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file, and take up what an earlier attempt left if there is a readable note of it."""
        await self._space.with_room(lambda: self._run(self._open))
        self._allocated = list(self.done)
        if self.was_resumed:
            await self._space.expect(self.num_done)
            await self._space.take(self.num_done)
        self._start_following()

    def _open(self) -> None:
        """In a thread, which notes what it opened by itself: a cancelled caller hears of nothing."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        found = read_note(self._sidecar)
        if found is not None and found[1][-1][1] <= os.fstat(self._fd).st_size:
            self.origin, self.done = found
            self.was_resumed = True
            return
        self._sidecar.unlink(missing_ok=True)
        os.ftruncate(self._fd, 0)

    async def reset(self) -> None:
        """Forget every byte; the room stays reserved."""
        self._stop_following()
        if await self._settle():
            raise asyncio.CancelledError
        self.done, self.origin, self.was_resumed = [], None, False
        self._checkpointed_bytes = 0
        await self._run(self._sidecar.unlink, True)
        self._start_following()

    async def close(self, *, keep: bool) -> None:
        """Close the file; unless it is to be kept for another attempt (or was published), delete it."""
        self._stop_following()
        # The descriptor must outlive the threads that use it, and the path must be free when this returns.
        interrupted = await self._settle()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            _ = self._run(_close, fd, self.path, self._sidecar, self._note() if keep else None)
            interrupted = await self._settle() or interrupted
        if interrupted:
            raise asyncio.CancelledError

    def _start_following(self) -> None:
        self._hash = OrderedHash(self._fd, self.buffers, self._hash_in_thread)
        self._hash.advance(self.frontier)
        self._follower = asyncio.create_task(self._hash.follow())
        self._jobs.add(self._follower)
        self._follower.add_done_callback(self._end_job)

    def _stop_following(self) -> None:
        if self._hash is not None and self._follower is not None:
            self._hash.stop()
            self._follower.cancel()
        self._hash = self._follower = None

    async def _settle(self) -> bool:
        """Wait, cancelled or not, until no thread works on the file; True if cancelled."""
        interrupted = False
        while self._jobs:
            try:
                await asyncio.wait(self._jobs)
            except asyncio.CancelledError:
                interrupted = True
        return interrupted

    # -- bytes -----------------------------------------------------------------------------------------

    @property
    def num_done(self) -> int:
        """Bytes that are here."""
        return _num_bytes(self.done)

    @property
    def frontier(self) -> int:
        """Bytes that are here in an unbroken run from the start."""
        return self.done[0][1] if self.done and self.done[0][0] == 0 else 0

    @property
    def num_unhashed(self) -> int:
        """Bytes of the unbroken run that are still to be hashed."""
        return self._hash.num_waiting if self._hash is not None else 0

    def missing(self, total: int) -> list[Span]:
        """The spans that are not here, in order."""
        edges = [0, *(edge for span in self.done for edge in span), total]
        return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]

    async def reserve(self, num_bytes: int) -> None:
        """Expect a file of this size, and take the first of its room. Raises InsufficientStorage."""
        if num_bytes <= self._reserved:
            return
        await self._space.expect(num_bytes)
        self._reserved = num_bytes
        await self._allocate((0, 0))

    async def _allocate(self, span: Span) -> None:
        """Take the disk's room for bytes that have come, and for a few more behind them."""
        start = span[0]
        end = max(span[1], min(start + self._step_bytes, self._reserved))
        if start == end or _covers(self._allocated, span):
            return
        self._allocated = _merged(self._allocated, (start, end))
        await self._space.take(_num_bytes(self._allocated))
        await self._space.with_room(lambda: self._run(os.posix_fallocate, self._fd, start, end - start))

    async def write(self, offset: int, size: int, buffer: memoryview) -> None:
        """Put the first bytes of a buffer of `buffers`, which is taken over, in their place.

        Waits where the checksum lags behind. Raises InsufficientStorage, and OSError where the disk is broken.
        """
        self._check_synced()
        await self._allocate((offset, offset + size))
        await self._space.with_room(lambda: self._run(_write, self._fd, buffer[:size], offset))
        is_in_order = offset == self.frontier
        self._add_done((offset, offset + size))
        if self.num_done - self._checkpointed_bytes >= self._checkpoint_bytes:
            self._checkpointed_bytes = self.num_done
            _ = self._run(self._checkpoint, self._note())
        if self._hash is None:
            raise RuntimeError("bytes were written to a file that is not open")
        if is_in_order:
            self._hash.keep(offset, size, buffer)
        else:
            self.buffers.give(buffer)
        self._hash.advance(self.frontier)
        if is_in_order:
            await self._hash.room()

    def _checkpoint(self, note: str | None) -> None:
        """In a thread: make durable what is there, so that little is left to wait for, and take note of it.

        The system tells a failure once and may have dropped the bytes: whatever else is synced, they are lost.
        """
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._sync_error = error
            return
        if note is not None:
            _write_note(self._sidecar, note)

    def _check_synced(self) -> None:
        if self._sync_error is not None:
            _raise_lost(self._sync_error)

    def _add_done(self, span: Span) -> None:
        self.done = _merged(self.done, span)

    # -- the note for another attempt ------------------------------------------------------------------

    def _note(self) -> str | None:
        if not self._is_resumable or self.num_done < self._checkpoint_bytes or self._sync_error is not None:
            return None
        if self.origin is None or self.origin.total is None:
            return None
        origin = self.origin
        return json.dumps({"total": origin.total, "etag": origin.etag, "done": self.done})

    # -- the end ---------------------------------------------------------------------------------------

    async def checksum(self, total: int) -> str:
        """The checksum of the file, whose `total` bytes are all here."""
        if self._hash is None or self._follower is None or self.frontier != total:
            raise RuntimeError("a checksum was wanted before all the bytes were there")
        self._hash.finish(total)
        await self._follower
        return self._hash.checksum()

    async def publish(self, destination: Path, total: int) -> None:
        """Give the file its name, so that after any crash the name has all of these bytes or is not there.

        Raises InsufficientStorage, and OSError where the disk is broken.
        """
        await self._settle()
        self._check_synced()
        try:
            await self._run(_publish, self._fd, self.path, self._sidecar, destination, total)
        except OSError as error:
            self._sync_error = error
            _raise_lost(error)

    # -- threads ---------------------------------------------------------------------------------------

    def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Run in a thread. A cancelled caller does not wait, but `close` does."""
        return self._run_in(self._threads.files, lambda: function(*args, **kwargs))

    def _hash_in_thread(self, job: Callable[[], None]) -> Awaitable[None]:
        return self._run_in(self._threads.hashing, job)

    def _run_in(self, threads: Executor, job: Callable[[], T]) -> Awaitable[T]:
        future = asyncio.get_running_loop().run_in_executor(threads, job)
        self._jobs.add(future)
        future.add_done_callback(self._end_job)
        return asyncio.shield(future)

    def _end_job(self, job: asyncio.Future[Any]) -> None:
        self._jobs.discard(job)
        if not job.cancelled():
            job.exception()  # whoever awaits it sees it; nobody may, after a cancellation


def _merged(spans: list[Span], span: Span) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted([*spans, span]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _covers(spans: list[Span], span: Span) -> bool:
    return span[0] < span[1] and any(start <= span[0] and span[1] <= end for start, end in spans)


def _num_bytes(spans: list[Span]) -> int:
    return sum(end - start for start, end in spans)


def read_note(sidecar: Path) -> tuple[Origin, list[Span]] | None:
    """What an earlier attempt noted, or None where it is missing or makes no sense."""
    try:
        note = json.loads(sidecar.read_text())
        origin = Origin(int(note["total"]), None if note["etag"] is None else str(note["etag"]))
        done = [(int(start), int(end)) for start, end in note["done"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    edges = [edge for span in done for edge in span]
    if not edges or not 0 <= edges[0] <= edges[-1] <= (origin.total or 0) or edges != sorted(set(edges)):
        return None
    return origin, done


def _raise_lost(error: OSError) -> NoReturn:
    """Say that bytes did not reach the disk."""
    if error.errno in OUT_OF_SPACE:
        raise InsufficientStorage("the disk has no room for the file") from error
    raise error


def _write_note(sidecar: Path, note: str) -> None:
    draft = sidecar.with_suffix(".note")
    with contextlib.suppress(OSError):  # without a note the next attempt starts from nothing
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(note)
        draft.rename(sidecar)


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:  # a disk that is about to be full takes less; the next write says so
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _close(fd: int, path: Path, sidecar: Path, note: str | None) -> None:
    os.close(fd)
    if note is not None:
        _write_note(sidecar, note)
    else:
        sidecar.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _publish(fd: int, path: Path, sidecar: Path, destination: Path, total: int) -> None:
    os.ftruncate(fd, total)
    os.fsync(fd)
    path.rename(destination)
    sync_folder(destination.parent)
    sidecar.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
