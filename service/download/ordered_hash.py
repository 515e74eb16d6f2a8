"""The checksum of a file while it is being written: Blake2b-256 follows the unbroken run of its bytes.

What has just been written in order is hashed from memory, and whoever writes faster than can be hashed waits.
What came out of order, or before a restart, is read back once, from the page cache as a rule. Hashing happens
in threads, a few mebibytes at a time: Python's lock is taken so seldom that it does not matter.
"""

import asyncio
import errno
import os
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from mmap import mmap

from service.checksum import Hasher

RunInThread = Callable[[Callable[[], None]], Awaitable[None]]

_MAX_KEPT_BYTES = 32 << 20  # a disk that stops for a moment is not noticed
_MAX_PIECE_BYTES = 16 << 20
_MAX_JOB_BYTES = 128 << 20


class Buffers:
    """Buffers of one size, used again: fresh memory costs more than filling it.

    They are mappings, whose pages come as they are filled: a small file takes little of a large buffer.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._spare: list[memoryview] = []

    def take(self) -> memoryview:
        """A buffer with whatever in it."""
        return self._spare.pop() if self._spare else memoryview(mmap(-1, self.size))

    def give(self, buffer: memoryview) -> None:
        """Give a buffer back that nobody looks at any more."""
        self._spare.append(buffer)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes to hash, from a buffer or, without one, from the file."""

    offset: int
    size: int
    buffer: memoryview | None


class OrderedHash:
    """The checksum of one open file. `follow` runs for as long as the file is written.

    While bytes wait the thread goes on by itself: it takes them from a queue that the event loop fills.
    """

    def __init__(self, fd: int, buffers: Buffers, run_in_thread: RunInThread) -> None:
        self._fd = fd
        self._buffers = buffers
        self._run_in_thread = run_in_thread
        self._loop = asyncio.get_running_loop()
        self._hasher = Hasher()
        self._num_hashed = 0
        self._frontier = 0
        self._total: int | None = None
        self._is_stopped = False
        self._kept: deque[_Piece] = deque()
        self._kept_bytes = 0
        self._queue: deque[_Piece] = deque()
        self._wake = asyncio.Event()
        self._wake.set()
        self._has_room = asyncio.Event()
        self._has_room.set()

    @property
    def num_waiting(self) -> int:
        """Bytes that lie in order and are still to be hashed."""
        return self._frontier - self._num_hashed

    def keep(self, offset: int, size: int, buffer: memoryview) -> None:
        """Take over a buffer whose bytes have just been written at the end of the unbroken run."""
        self._kept.append(_Piece(offset, size, buffer))
        self._kept_bytes += size
        if self._kept_bytes >= _MAX_KEPT_BYTES:
            self._has_room.clear()

    def advance(self, frontier: int) -> None:
        """The unbroken run now ends here."""
        while self._frontier < frontier:
            piece = self._next_piece(frontier)
            self._queue.append(piece)
            self._frontier += piece.size
        self._wake.set()

    def _next_piece(self, limit: int) -> _Piece:
        if self._kept and self._kept[0].offset == self._frontier:
            return self._kept.popleft()
        if self._kept:
            limit = min(limit, self._kept[0].offset)
        return _Piece(self._frontier, min(limit - self._frontier, _MAX_PIECE_BYTES), None)

    async def room(self) -> None:
        """Wait until few enough bytes are kept."""
        await self._has_room.wait()

    async def follow(self) -> None:
        """Hash the bytes as their unbroken run grows, to the end that `finish` sets."""
        try:
            while self._num_hashed != self._total:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    await self._run_in_thread(self._hash_queue)
        finally:
            self._has_room.set()

    def finish(self, total: int) -> None:
        """Let `follow` end when so many bytes are hashed."""
        self._total = total
        self._wake.set()

    def stop(self) -> None:
        """Let the thread end soon; there will be no checksum."""
        self._is_stopped = True

    def checksum(self) -> str:
        """The checksum, once `follow` has ended."""
        return self._hasher.checksum()

    def _count(self, piece: _Piece) -> None:
        """On the event loop: a piece is hashed."""
        self._num_hashed += piece.size
        if piece.buffer is not None:
            self._kept_bytes -= piece.size
            self._buffers.give(piece.buffer)
        if self._kept_bytes < _MAX_KEPT_BYTES:
            self._has_room.set()

    # -- in a thread -------------------------------------------------------------------------------------

    def _hash_queue(self) -> None:
        num_left = _MAX_JOB_BYTES  # then it is another file's turn
        while self._queue and num_left > 0 and not self._is_stopped:
            piece = self._queue.popleft()
            if piece.buffer is not None:
                self._hasher.update(piece.buffer[: piece.size])
            else:
                self._hash_from_file(piece.offset, piece.size)
            num_left -= piece.size
            self._loop.call_soon_threadsafe(self._count, piece)

    def _hash_from_file(self, offset: int, size: int) -> None:
        buffer = memoryview(bytearray(min(size, self._buffers.size)))
        while size:
            num_read = os.preadv(self._fd, [buffer[:size]], offset)
            if num_read == 0:
                raise OSError(errno.EIO, "the file has become shorter")
            self._hasher.update(buffer[:num_read])
            offset, size = offset + num_read, size - num_read
