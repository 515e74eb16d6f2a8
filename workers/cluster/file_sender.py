"""Brings files to nodes: cut into blocks, each a Ray object that every node may fetch from whoever has it.

At most a few blocks exist at a time, whatever the sizes and numbers of files and nodes: the memory that this takes
does not grow with them. A node is sent a file once, though several of its devices ask for it.
"""

import asyncio
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workers.cluster.cluster_errors import ActorLost, CannotPut, Undeliverable
from workers.cluster.device_actor import DeviceActor
from workers.cluster.messages import FileToSend
from workers.cluster.relay_actor import DISK_FULL, MISSING_DATA, MISSING_WEIGHTS, NOT_AS_PUBLISHED, WRITTEN

if TYPE_CHECKING:
    from workers.cluster.ray_cluster import RayCluster

BLOCK_BYTES = 32 << 20
MAX_BLOCKS = 4
"""Blocks that exist at a time, for all files and nodes together."""
_BLOCKS_AHEAD = 2
"""Blocks of one file that are on their way to one node: one is fetched while another is written."""
_PUT_SECONDS = 15.0
"""How long Ray may take to hold a block on this machine; a raylet that is frozen takes none."""
_BLOCK_SECONDS = 120.0
"""How long a block may take to a node and onto its disk."""
_ASK_SECONDS = 30.0
_MAX_ROUNDS = 3
"""How often a node is sent what it then does not have: others may need its room."""

OnBlock = Callable[[], None]
OnSent = Callable[[str, int, float], None]
"""A node has a further file: the node's name, bytes, seconds."""


@dataclass(eq=False)
class _Transfer:
    """One file on its way to one node, and those who wait for it."""

    actor: DeviceActor
    waiting: list[OnBlock]
    task: asyncio.Task[None]


class FileSender:
    """Sends files to all nodes. One event loop."""

    def __init__(self, cluster: "RayCluster", on_sent: OnSent | None = None) -> None:
        self._cluster = cluster
        self._on_sent = on_sent
        self._room = asyncio.Semaphore(MAX_BLOCKS)
        self._blocks: dict[str, _Blocks] = {}
        self._transfers: dict[tuple[str, str], _Transfer] = {}
        """By node and checksum."""
        self.bytes_sent = 0

    async def bring(
        self, actor: DeviceActor, weights: FileToSend, data: FileToSend | None, on_block: OnBlock
    ) -> None:
        """Return once the actor's node has both files, and keeps them for it. `on_block`: a further block is there.

        Raises Undeliverable and ActorLost.
        """
        wanted = (weights.checksum, weights.size, data.checksum if data else "", data.size if data else 0)
        for _ in range(_MAX_ROUNDS):
            missing = await actor.call("missing", *wanted, timeout_seconds=_ASK_SECONDS)
            if missing == 0:
                return
            if missing & MISSING_DATA and data:
                await self._send_once(actor, data, on_block)
            if missing & MISSING_WEIGHTS:
                await self._send_once(actor, weights, on_block)
        raise Undeliverable("the node does not keep the files that it is sent", disk_is_full=True)

    async def _send_once(self, actor: DeviceActor, file: FileToSend, on_block: OnBlock) -> None:
        """Send the file unless it is on its way to the node already; wait for it either way."""
        key = (actor.device.node.id, file.checksum)
        transfer = self._transfers.get(key)
        if transfer is None:
            waiting: list[OnBlock] = []
            task = asyncio.create_task(self._send(actor, file, waiting))
            transfer = self._transfers[key] = _Transfer(actor, waiting, task)
        transfer.waiting.append(on_block)
        try:
            await asyncio.shield(transfer.task)
        except ActorLost:
            if transfer.actor is actor:
                raise  # else the caller asks again, and sends it through its own actor
        finally:
            transfer.waiting.remove(on_block)
            if self._transfers.get(key) is transfer and (not transfer.waiting or transfer.task.done()):
                del self._transfers[key]
                transfer.task.cancel()  # it is there, or nobody wants it any more

    async def _send(self, actor: DeviceActor, file: FileToSend, waiting: list[OnBlock]) -> None:
        blocks = self._blocks.setdefault(file.checksum, _Blocks(file, self._cluster, self._room))
        blocks.num_users += 1
        under_way: deque[asyncio.Task[None]] = deque()
        began = time.monotonic()
        try:
            for index in range(blocks.num_blocks):
                under_way.append(asyncio.create_task(self._send_block(actor, blocks, index, waiting)))
                while len(under_way) >= (_BLOCKS_AHEAD if index else 1):
                    await under_way.popleft()
            while under_way:
                await under_way.popleft()
            if self._on_sent:
                self._on_sent(actor.device.node.name, file.size, time.monotonic() - began)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)
            blocks.num_users -= 1
            if not blocks.num_users:
                del self._blocks[file.checksum]

    async def _send_block(
        self, actor: DeviceActor, blocks: "_Blocks", index: int, waiting: list[OnBlock]
    ) -> None:
        file = blocks.file
        block = await blocks.acquire(index)
        try:
            outcome = await actor.call(
                "receive",
                file.checksum,
                file.size,
                index * BLOCK_BYTES,
                block,
                timeout_seconds=_BLOCK_SECONDS,
            )
        finally:
            blocks.release(index)
        if outcome != WRITTEN:
            raise _undeliverable(outcome)
        self.bytes_sent += blocks.size_of(index)
        for on_block in waiting:
            on_block()


class _Blocks:
    """The blocks of one file: each an object as long as anybody is being sent it."""

    def __init__(self, file: FileToSend, cluster: "RayCluster", room: asyncio.Semaphore) -> None:
        self.file = file
        self.num_blocks = -(-file.size // BLOCK_BYTES)
        self.num_users = 0
        self._cluster = cluster
        self._room = room
        self._alive: dict[int, tuple[asyncio.Task[Any], int]] = {}
        """Index -> the object, perhaps still being made, and how many are being sent it."""

    def size_of(self, index: int) -> int:
        """Bytes of a block."""
        return min(BLOCK_BYTES, self.file.size - index * BLOCK_BYTES)

    async def acquire(self, index: int) -> Any:
        """The block as an object, until it is released as often. Raises Undeliverable."""
        making, num_users = self._alive.get(index) or (asyncio.create_task(self._make(index)), 0)
        self._alive[index] = making, num_users + 1
        try:
            return await asyncio.shield(making)
        except BaseException:
            self.release(index)
            raise

    def release(self, index: int) -> None:
        """It is there, or was given up."""
        making, num_users = self._alive[index]
        if num_users > 1:
            self._alive[index] = making, num_users - 1
            return
        del self._alive[index]
        if making.done() and not making.cancelled() and making.exception() is None:
            self._room.release()
        else:
            making.cancel()

    async def _make(self, index: int) -> Any:
        await self._room.acquire()
        try:
            block = await asyncio.to_thread(self._read, index)
            made = await self._put(block)
        except BaseException as error:
            self._room.release()
            if isinstance(error, OSError):
                raise Undeliverable(f"the head cannot read the file: {error.strerror}") from None
            if isinstance(error, CannotPut):
                raise Undeliverable(f"Ray cannot hold a block of it: {error}") from None
            raise
        return made

    async def _put(self, block: bytes) -> Any:
        try:
            async with asyncio.timeout(_PUT_SECONDS):
                return await asyncio.to_thread(self._cluster.put, block)
        except TimeoutError:
            raise CannotPut(f"its raylet on the head has not taken it for {_PUT_SECONDS:g} s") from None

    def _read(self, index: int) -> bytes:
        size = self.size_of(index)
        with open(self.file.path, "rb", buffering=0) as file:
            block = os.pread(file.fileno(), size, index * BLOCK_BYTES)
        if len(block) != size:
            raise OSError(None, "it became shorter")
        return block


def _undeliverable(outcome: int) -> Undeliverable:
    if outcome == DISK_FULL:
        return Undeliverable("the node's disk is full", disk_is_full=True)
    if outcome == NOT_AS_PUBLISHED:
        return Undeliverable("what arrived at the node does not have its checksum")
    return Undeliverable("the node's disk does not work")
