"""A file that is being downloaded: its bytes in any order, their checksum, and its publication.

Bytes may be written in any order and by several connections. All file work happens in threads.
"""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, NoReturn, ParamSpec, Protocol, TypeVar

from service.download import spans
from service.download.partial_note import Origin, PartialNote, note_path, read_note, write_note
from service.download.spans import Span
from service.download.trailing_hash import TrailingHash
from service.errors import InsufficientStorage

P = ParamSpec("P")
T = TypeVar("T")

OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Space(Protocol):
    """Grants disk space to one file."""

    async def expect(self, num_bytes: int) -> None:
        """The file is expected to have `num_bytes` in all. Raises InsufficientStorage if it can never fit."""

    async def take(self, num_bytes: int) -> None:
        """The file occupies `num_bytes` of the disk now. Raises InsufficientStorage."""

    async def retry_when_full(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do work that writes to the disk; free space and repeat it while the disk is full.

        Raises InsufficientStorage, OSError.
        """

    def release(self) -> None:
        """Give all of the space back: the file is deleted, or counted elsewhere. May be called again."""


class PartialFile:
    """One file that is being written and hashed. Owned by one task, which must `close` it.

    With `is_resumable` it is synced after every `sync_bytes` written, and a note of what it holds is kept beside it.
    Disk space is allocated in steps of `allocation_bytes`.
    """

    def __init__(
        self,
        path: Path,
        space: Space,
        threads: Executor,
        *,
        is_resumable: bool,
        sync_bytes: int,
        allocation_bytes: int,
    ) -> None:
        self.path = path
        self.written: list[Span] = []
        self.origin: Origin | None = None
        """Set by the owner once the server has said something of the file."""
        self.was_resumed = False
        """Whether some of the bytes are those of an earlier attempt."""
        self._note_path = note_path(path)
        self._space = space
        self._threads = threads
        self._is_resumable = is_resumable
        self._sync_bytes = sync_bytes
        self._num_synced = 0
        self._fd = -1
        self._expected_size = 0
        self._allocated: list[Span] = []
        self._allocation_bytes = allocation_bytes
        self._sync_error: OSError | None = None
        self._jobs: set[asyncio.Future[Any]] = set()
        self._hash: TrailingHash | None = None
        self._hashing: asyncio.Task[None] | None = None

    # -- open, reset, close ----------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the file; keep the bytes of an earlier attempt if there is a valid note of them."""
        await self._space.retry_when_full(lambda: self._run(self._open))
        self._allocated = list(self.written)
        if self.was_resumed:
            await self._space.expect(self.num_written)
            await self._space.take(self.num_written)
        self._start_hashing()

    def _open(self) -> None:
        """In a thread, which stores the descriptor itself: a cancelled caller does not receive a result."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        note = read_note(self._note_path)
        if note is not None and note.written[-1][1] <= os.fstat(self._fd).st_size:
            self.origin, self.written = note.origin, note.written
            self.was_resumed = True
            return
        self._note_path.unlink(missing_ok=True)
        os.ftruncate(self._fd, 0)

    async def reset(self) -> None:
        """Forget every byte; the disk space stays allocated."""
        self._stop_hashing()
        if await self._wait_for_jobs():
            raise asyncio.CancelledError
        self.written, self.origin, self.was_resumed = [], None, False
        self._num_synced = 0
        await self._run(self._note_path.unlink, True)
        self._start_hashing()

    async def close(self, *, keep: bool) -> None:
        """Close the file. Unless it is to be kept for another attempt (or was published), delete it."""
        self._stop_hashing()
        # The descriptor must stay open while threads use it, and the path must be free when this returns.
        interrupted = await self._wait_for_jobs()
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            _ = self._run(_close, fd, self.path, self._note_path, self._note() if keep else None)
            interrupted = await self._wait_for_jobs() or interrupted
        self._space.release()
        if interrupted:
            raise asyncio.CancelledError

    async def _wait_for_jobs(self) -> bool:
        """Wait, even when cancelled, until no thread works on the file; True if cancelled."""
        interrupted = False
        while self._jobs:
            try:
                await asyncio.wait(self._jobs)
            except asyncio.CancelledError:
                interrupted = True
        return interrupted

    # -- writing ---------------------------------------------------------------------------------------

    @property
    def num_written(self) -> int:
        """The number of bytes in the file."""
        return spans.num_bytes(self.written)

    @property
    def num_unhashed(self) -> int:
        """Bytes in the unbroken run from the start of the file that are not hashed yet."""
        return self._hash.num_behind if self._hash is not None else 0

    def missing(self, size: int) -> list[Span]:
        """The spans that are not in the file, in order, if it is to have `size` bytes."""
        return spans.missing(self.written, size)

    async def expect(self, size: int) -> None:
        """Prepare for a file of this size, and allocate the first bytes. Raises InsufficientStorage, OSError."""
        if size <= self._expected_size:
            return
        await self._space.expect(size)
        self._expected_size = size
        await self._allocate((0, 0))

    async def _allocate(self, span: Span) -> None:
        """Allocate disk space for a span, and for some bytes that will follow it."""
        start = span[0]
        end = max(span[1], min(start + self._allocation_bytes, self._expected_size))
        if start == end or spans.covers(self._allocated, span):
            return
        self._allocated = spans.merged(self._allocated, (start, end))
        await self._space.take(spans.num_bytes(self._allocated))
        await self._space.retry_when_full(lambda: self._run(os.posix_fallocate, self._fd, start, end - start))

    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`, which must not change meanwhile. Raises InsufficientStorage, OSError."""
        if self._hash is None:
            raise RuntimeError("bytes were written to a file that is not open")
        self._check_synced()
        span = (offset, offset + len(data))
        await self._allocate(span)
        await self._space.retry_when_full(lambda: self._run(_write, self._fd, data, offset))
        self.written = spans.merged(self.written, span)
        self._hash.advance(spans.prefix_end(self.written))
        if self.num_written - self._num_synced >= self._sync_bytes:
            self._num_synced = self.num_written
            _ = self._run(self._sync, self._note())

    def _sync(self, note: PartialNote | None) -> None:
        """In a thread: make the bytes durable, so that little is left to sync at the end; then write the note.

        The system reports a failed sync once and may have dropped the bytes: they are lost even if a later sync
        succeeds.
        """
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._sync_error = error
            return
        if note is not None:
            write_note(self._note_path, note)

    def _check_synced(self) -> None:
        if self._sync_error is not None:
            _raise_lost(self._sync_error)

    def _note(self) -> PartialNote | None:
        """The note for another attempt; None where there should be none."""
        if not self._is_resumable or self.num_written < self._sync_bytes or self._sync_error is not None:
            return None
        if self.origin is None or self.origin.size is None:
            return None
        return PartialNote(self.origin, self.written)

    # -- checksum and publication ----------------------------------------------------------------------

    def _start_hashing(self) -> None:
        self._hash = TrailingHash(self._fd, lambda job: self._run(job))
        self._hash.advance(spans.prefix_end(self.written))
        self._hashing = asyncio.create_task(self._hash.follow())
        self._track(self._hashing)

    def _stop_hashing(self) -> None:
        if self._hashing is not None:
            self._hashing.cancel()
        self._hash = self._hashing = None

    async def checksum(self, size: int) -> str:
        """The checksum of the file, all of whose `size` bytes are written. Raises OSError."""
        if self._hash is None or self._hashing is None or self.missing(size):
            raise RuntimeError("a checksum was requested before all bytes were written")
        self._hash.finish(size)
        await self._hashing
        return self._hash.checksum()

    async def publish(self, destination: Path, size: int) -> None:
        """Rename the complete file, such that after any crash the new name has all bytes or does not exist.

        Raises InsufficientStorage, and OSError where the disk does not work.
        """
        await self._wait_for_jobs()
        self._check_synced()
        try:
            await self._run(_publish, self._fd, self.path, self._note_path, destination, size)
        except OSError as error:
            self._sync_error = error
            _raise_lost(error)
        self._space.release()

    # -- threads ---------------------------------------------------------------------------------------

    def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Awaitable[T]:
        """Run in a thread. A cancelled caller does not wait for the thread, but `close` does."""
        loop = asyncio.get_running_loop()
        job = loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        self._track(job)
        return asyncio.shield(job)

    def _track(self, job: asyncio.Future[Any]) -> None:
        self._jobs.add(job)
        job.add_done_callback(self._untrack)

    def _untrack(self, job: asyncio.Future[Any]) -> None:
        self._jobs.discard(job)
        if not job.cancelled():
            job.exception()  # asyncio would log an exception that nobody awaits, as after a cancellation


def _raise_lost(error: OSError) -> NoReturn:
    """Raise what it means that bytes did not reach the disk."""
    if error.errno in OUT_OF_SPACE:
        raise InsufficientStorage("the disk has no room for the file") from error
    raise error


def _write(fd: int, data: memoryview, offset: int) -> None:
    while data:  # a disk that is nearly full accepts less; the next write fails
        num_written = os.pwrite(fd, data, offset)
        data, offset = data[num_written:], offset + num_written


def _close(fd: int, path: Path, note_file: Path, note: PartialNote | None) -> None:
    os.close(fd)
    if note is not None:
        write_note(note_file, note)
    else:
        note_file.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def _publish(fd: int, path: Path, note_file: Path, destination: Path, size: int) -> None:
    os.ftruncate(fd, size)
    os.fsync(fd)
    path.rename(destination)
    sync_folder(destination.parent)
    note_file.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
