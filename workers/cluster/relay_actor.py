"""The actor of one device of a node: starts worker processes there, one after the other, and relays their frames.

It looks into no frame and no file: both are bytes to it, and only bytes and plain numbers come to it and leave it.
Imports no ray, which makes an actor of it elsewhere.
"""

import asyncio
import os
import time
from pathlib import Path
from typing import cast

from workers.cluster.hello import own_hello, write_hello
from workers.cluster.node_files import DiskFull, IncomingFile, NodeFiles, NotAsPublished
from workers.cluster.raylet_watch import RayletWatch
from workers.message_codec import Decoder
from workers.own_process import keep_memory_private
from workers.processes.child_process import ChildProcess, Pipe, worker_environment
from workers.types import WorkerConfig

FRAMES, CLOSED, STOPPED, CUT_OFF = b"f", b"c", b"s", b"x"
"""What `read` begins with: frames follow; none will any more; none until the process is continued (SIGCONT); the node
is of no use, as its raylet is stopped."""
MISSING_WEIGHTS, MISSING_DATA = 1, 2
WRITTEN, DISK_FULL, NOT_AS_PUBLISHED, DISK_ERROR = range(4)
"""What became of a block."""

_MAX_READ_BYTES = 256 << 10
_MAX_BUFFERED_BYTES = 2 << 20
"""A worker that sends more than the head fetches has to wait."""
_FENCE_CHECK_SECONDS = 1.0


class RelayActor:
    """Every method is called by the head, and each call counts as a word of it."""

    def __init__(
        self,
        data_dir: str,
        data_max_bytes: int,
        entry_module: str,
        silence_seconds: float,
        fence_seconds: float,
        raylet_pid: int | None = None,
    ) -> None:
        keep_memory_private()  # keys pass through here
        self._data_dir = Path(data_dir).expanduser().absolute()
        self._files = NodeFiles(self._data_dir, data_max_bytes)
        self._entry_module = entry_module
        self._silence_seconds = silence_seconds
        self._fence_seconds = fence_seconds
        self._raylet = RayletWatch(raylet_pid or os.getppid())
        self._session = 0
        self._child: ChildProcess | None = None
        self._buffer = _Buffer()
        self._incoming: dict[str, IncomingFile] = {}
        self._files_changed = asyncio.Condition()
        self._heard_at = time.monotonic()
        self._fence: asyncio.Task[None] | None = None

    async def hello(self) -> bytes:
        """The node's hello."""
        self._hear()
        return write_hello(own_hello(self._data_dir, gpu=os.environ.get("CUDA_VISIBLE_DEVICES", "")))

    # -- one process after the other

    async def spawn(self, session: int, config: bytes) -> int:
        """Start the process of a new session, and end that of an earlier one; returns its pid, or -errno."""
        self._hear()
        if session <= self._session:
            return -1
        await self._end(0.0)
        (worker_config,) = Decoder(WorkerConfig).feed(config)
        self._session, self._buffer = session, _Buffer()
        self._fence = self._fence or asyncio.create_task(self._watch_head())
        try:
            self._child = await ChildProcess.spawn(
                self._entry_module,
                self._buffer,
                worker_environment(worker_config),
                f"worker on {worker_config.device}",
            )
        except OSError as error:
            return -(error.errno or 1)
        return self._child.pid

    async def write(self, session: int, frames: bytes) -> int:
        """Frames for the process; dropped when it is not of this session."""
        self._hear()
        if session == self._session and self._child:
            self._child.write(frames)
        return 0

    async def read(self, session: int, wait_seconds: float) -> bytes:
        """FRAMES and what the process has sent, after `wait_seconds` at the latest; CLOSED once there is no more.

        STOPPED where it has sent nothing because it is stopped, CUT_OFF where the node's raylet is, for long.
        """
        self._hear()
        if session != self._session:
            return CLOSED
        frames = await self._buffer.take(wait_seconds)
        if self._raylet.stopped_seconds() >= self._silence_seconds:
            return CUT_OFF
        if frames is None:
            return CLOSED
        return STOPPED if not frames and self._child and self._child.is_stopped else FRAMES + frames

    async def end(self, session: int, grace_seconds: float) -> bytes:
        """End the process of this session. Exit status, whether a signal ended it, whether it is stuck; as text."""
        self._hear()
        child = self._child if session == self._session else None
        if child is None:
            return b"-9 1 0"
        status = await self._end(grace_seconds)
        return b"%d %d %d" % (status, child.was_ended_here, child.is_stuck)

    async def _end(self, grace_seconds: float) -> int:
        if self._child is None:
            return 0
        child = self._child
        status = await (child.end(grace_seconds) if grace_seconds else child.kill())
        if self._child is child and not child.is_stuck:
            self._child = None
        return status

    # -- files

    async def missing(self, weights: str, weights_size: int, data: str, data_size: int) -> int:
        """Which of a job's two files are not here: MISSING_WEIGHTS | MISSING_DATA. Those that are stay for the job."""
        self._hear()
        async with self._files_changed:
            has_weights = await asyncio.to_thread(self._files.hold, weights, weights_size)
            has_data = not data or await asyncio.to_thread(self._files.hold, data, data_size)
        return MISSING_WEIGHTS * (not has_weights) | MISSING_DATA * (not has_data)

    async def receive(self, checksum: str, size: int, offset: int, block: bytes) -> int:
        """One block of a file; the first begins it anew, the last publishes it. Returns what became of it.

        Blocks may arrive in any order once the first is written: each waits for its turn.
        """
        self._hear()
        async with self._files_changed:
            await self._files_changed.wait_for(lambda: self._may_write(checksum, offset))
            outcome = await asyncio.to_thread(self._receive, checksum, size, offset, block)
            self._files_changed.notify_all()
        return outcome

    def _may_write(self, checksum: str, offset: int) -> bool:
        """Whether the block's turn has come, or never will."""
        incoming = self._incoming.get(checksum)
        return offset == 0 or incoming is None or incoming.num_written >= offset

    def _receive(self, checksum: str, size: int, offset: int, block: bytes) -> int:
        try:
            if offset == 0:
                self._abandon(checksum)
                self._incoming[checksum] = self._files.receive(checksum, size)
            incoming = self._incoming.get(checksum)
            if incoming is None or incoming.num_written != offset:
                return DISK_ERROR
            incoming.write(block)
            if incoming.num_written == size:
                incoming.publish()
                self._abandon(checksum)
        except (DiskFull, NotAsPublished, OSError, ValueError) as error:
            self._abandon(checksum)
            kinds = {DiskFull: DISK_FULL, NotAsPublished: NOT_AS_PUBLISHED}
            return kinds.get(type(error), DISK_ERROR)
        return WRITTEN

    def _abandon(self, checksum: str) -> None:
        incoming = self._incoming.pop(checksum, None)
        if incoming:
            incoming.close()

    # -- fencing

    def _hear(self) -> None:
        self._heard_at = time.monotonic()

    async def _watch_head(self) -> None:
        """End the process when nothing was heard of the head for too long: it has given this device up."""
        while True:
            await asyncio.sleep(min(_FENCE_CHECK_SECONDS, self._fence_seconds / 4))
            if self._child and time.monotonic() - self._heard_at > self._fence_seconds:
                await self._end(0.0)


class _Buffer(Pipe):
    """What the process has sent and the head has not fetched yet."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._is_closed = self._is_paused = False
        self._changed = asyncio.Event()
        self._transport: asyncio.ReadTransport | None = None

    async def take(self, wait_seconds: float) -> bytes | None:
        """Some of it, or nothing after so long; None once the process has closed its end and all was taken."""
        if not self._bytes and not self._is_closed:
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._changed.wait()
            except TimeoutError:
                return b""
        if not self._bytes and self._is_closed:
            return None
        taken = bytes(self._bytes[:_MAX_READ_BYTES])
        del self._bytes[:_MAX_READ_BYTES]
        if self._transport and self._is_paused and len(self._bytes) < _MAX_BUFFERED_BYTES:
            self._transport.resume_reading()
            self._is_paused = False
        return taken

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not a check: Ray's event loop may be uvloop, whose transports are of other classes.
        self._transport = cast(asyncio.ReadTransport, transport)

    def data_received(self, data: bytes) -> None:
        self._bytes += data
        if self._transport and not self._is_paused and len(self._bytes) >= _MAX_BUFFERED_BYTES:
            self._transport.pause_reading()
            self._is_paused = True
        self._changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._is_closed = True
        self._transport = None
        self._changed.set()
