"""Gathers what one connection receives into larger writes; receiving goes on while the last one is written."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from mmap import mmap

import httpx

from service.download.partial_file import PartialFile
from service.download.range_plan import Part
from service.download.responses import Broken
from service.download.throughput import ThroughputMonitor

_MAX_GATHER_SECONDS = 1.0
"""What a slow server sends is written after this time though the buffer is not full: a crash loses little."""


class PartWriter:
    """One for each connection, with two buffers that take turns."""

    def __init__(self, partial: PartialFile, monitor: ThroughputMonitor, write_bytes: int) -> None:
        self._partial = partial
        self._monitor = monitor
        # Pages of a mapping are allocated when they are first filled: a small file needs little of a large buffer.
        self._buffer, self._spare = (memoryview(mmap(-1, write_bytes)) for _ in range(2))
        self._num_gathered = 0
        self._gathering_since = 0.0
        self._writing: asyncio.Task[None] | None = None

    @contextlib.asynccontextmanager
    async def writing(self, part: Part) -> AsyncIterator[None]:
        """Within this block `space` is filled with the bytes of a part, whose `start` moves as they are written.

        What was received before the connection broke is written too. After any other failure the writer is not
        to be used again.
        """
        self._part = part
        self._num_gathered, self._gathering_since = 0, time.monotonic()
        try:
            yield
        except (httpx.TransportError, Broken):
            await self._flush()
            raise
        except BaseException:
            if self._writing is not None:  # its bytes are of no use, and must not be counted later
                self._writing.cancel()
                await asyncio.wait([self._writing])
            raise
        await self._flush()

    @property
    def space(self) -> memoryview:
        """Where the next bytes belong; never empty."""
        return self._buffer[self._num_gathered :]

    async def add(self, num_bytes: int) -> None:
        """Take the bytes that have been put into `space`."""
        self._num_gathered += num_bytes
        is_full = self._num_gathered == len(self._buffer)
        if is_full or time.monotonic() - self._gathering_since > _MAX_GATHER_SECONDS:
            await self._start_write()

    async def _flush(self) -> None:
        await self._start_write()
        await self._end_write()

    async def _start_write(self) -> None:
        await self._end_write()
        if self._num_gathered:
            self._writing = asyncio.create_task(self._write(self._buffer[: self._num_gathered]))
            self._buffer, self._spare = self._spare, self._buffer
        self._num_gathered, self._gathering_since = 0, time.monotonic()

    async def _end_write(self) -> None:
        if self._writing is not None:
            with self._monitor.waiting_for_disk():
                await self._writing
            self._writing = None

    async def _write(self, data: memoryview) -> None:
        await self._partial.write(self._part.start, data)
        self._part.start += len(data)
