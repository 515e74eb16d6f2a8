"""One download into one partial file: several connections, resumption, and bounds on size, attempts and time."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NoReturn

import httpx

from service.download.connection_failure import describe
from service.download.counts import DownloadCounts
from service.download.part_writer import PartWriter
from service.download.partial_file import PartialFile
from service.download.range_plan import Part, RangePlan, StartOver
from service.download.request import DownloadRequest
from service.download.responses import Broken, ReplyHead, check_reply
from service.download.retries import Retries
from service.download.throughput import (
    DownloadLimits,
    DownloadProgress,
    OnDownloadProgress,
    ThroughputMonitor,
)
from service.egress.body_stream import body_of
from service.errors import BlobUnavailable, ChecksumMismatch, DownloadTimeout, SizeMismatch

Get = Callable[[str, dict[str, str]], AbstractAsyncContextManager[httpx.Response]]
"""(url, headers) -> the reply to one guarded GET, its body not yet read."""

_UNKNOWN_SIZE_STEP = 64 << 20
"""Disk space is requested so many bytes at a time while the file's size is unknown."""

_MAX_UNHASHED_BYTES = 24 << 20
"""With more than this still to be hashed, another connection would only leave more to hash at the end."""


@dataclass(frozen=True, slots=True)
class Downloaded:
    """Checksum and size, as computed from the bytes."""

    checksum: str
    size: int


class RangedDownload:
    """Fills one partial file. The plan says what to request; this requests it and writes what is received."""

    def __init__(
        self,
        get: Get,
        limits: DownloadLimits,
        counts: DownloadCounts,
        request: DownloadRequest,
        partial: PartialFile,
        on_progress: OnDownloadProgress | None,
    ) -> None:
        self._get = get
        self._limits = limits
        self._counts = counts
        self._request = request
        self._partial = partial
        self._on_progress = on_progress
        self._plan = RangePlan(request, limits.part_bytes)
        self._monitor = ThroughputMonitor(limits, request.kind)
        self._retries = Retries(limits)
        self._num_connections = 0
        self._max_connections = limits.num_connections

    async def run(self) -> Downloaded:
        """Download, start over where that is needed, verify. Raises what Downloader.download raises."""
        blob, kind = self._request.blob, self._request.kind
        self._request.check_size(blob.size)
        if self._partial.origin is not None and not self._plan.resume(self._partial.origin):
            await self._forget()
        for _ in range(self._limits.max_attempts):
            try:
                size = await self._download_missing()
            except StartOver:
                await self._forget()
                continue
            checksum = await self._partial.checksum(size)
            if blob.checksum in (None, checksum):
                return Downloaded(checksum, size)
            if not self._partial.was_resumed:
                raise ChecksumMismatch("the bytes are not those that were promised", blob=kind)
            await self._forget()  # the bytes of the earlier attempt may be the wrong ones
        raise BlobUnavailable("the file changes while it is downloaded", blob=kind)

    async def _forget(self) -> None:
        await self._partial.reset()
        self._plan.forget()

    # -- connections -----------------------------------------------------------------------------------

    async def _download_missing(self) -> int:
        """Download what is not in the file yet; the size of the whole."""
        size = self._plan.size
        if size is not None:
            await self._expect(size)
        self._plan.begin([] if size is None else self._partial.missing(size))
        self._max_connections = self._limits.num_connections
        self._monitor.restart_window()
        connections = {self._connect()}
        try:
            while connections:
                done, connections = await asyncio.wait(
                    connections, timeout=self._limits.tick_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                _raise_first(done)
                self._check_throughput()
                self._report()
                if self._needs_connection():
                    connections.add(self._connect())
        finally:
            for connection in connections:
                connection.cancel()
            await asyncio.gather(*connections, return_exceptions=True)
        return self._partial.num_written

    def _connect(self) -> asyncio.Task[None]:
        self._num_connections += 1
        return asyncio.create_task(self._run_connection())

    def _needs_connection(self) -> bool:
        """Whether to open another one: the server has sent bytes of a range, and the checksum keeps up with them."""
        return (
            self._plan.is_confirmed
            and self._plan.has_parts
            and self._monitor.num_received > 0
            and self._num_connections < self._max_connections
            and self._partial.num_unhashed < _MAX_UNHASHED_BYTES
        )

    async def _run_connection(self) -> None:
        """Request one part after another until none is left."""
        writer = PartWriter(self._partial, self._monitor, self._limits.write_bytes)
        try:
            while (part := self._plan.next_part()) is not None:
                while not part.is_done:
                    try:
                        await self._download_part(part, writer)
                    except (httpx.TransportError, Broken) as failure:
                        if self._num_connections > 1:
                            self._max_connections = self._num_connections - 1
                            self._plan.put_back(part)
                            return
                        await self._prepare_retry(part, failure)
        finally:
            self._num_connections -= 1

    async def _prepare_retry(self, part: Part, failure: Exception) -> None:
        if part.is_complete:  # the connection broke after its last byte
            part.is_done = True
            return
        self._retries.add(failure, self._monitor.num_received)
        if self._retries.are_exhausted:
            num_failures = self._retries.num_failures
            tries = f"{num_failures} tries" if num_failures > 1 else "one try"
            raise BlobUnavailable(
                f"{describe(failure)} ({tries})", blob=self._request.kind
            ) from self._retries.last_failure
        await asyncio.sleep(self._retries.backoff_seconds())
        if part.start > 0 and not self._plan.uses_ranges:
            raise StartOver

    def _check_throughput(self) -> None:
        size = self._plan.size
        try:
            self._monitor.check(self._request.max_bytes if size is None else size)
        except DownloadTimeout as timeout:
            raise timeout from self._retries.last_failure

    def _report(self) -> None:
        if self._on_progress is not None:
            monitor = self._monitor
            self._on_progress(
                DownloadProgress(
                    self._partial.num_written,
                    self._plan.size,
                    monitor.bytes_per_second,
                    monitor.transfer_seconds,
                )
            )

    # -- one request -----------------------------------------------------------------------------------

    async def _download_part(self, part: Part, writer: PartWriter) -> None:
        plan = self._plan
        headers = plan.headers_for(part)
        asked = bool(headers)
        async with self._get(self._request.blob.url, headers) as response:
            if response.status_code == 416 and asked:
                plan.give_up_ranges()
            head = check_reply(response, self._request.kind)
            if head.is_partial:
                plan.accept_range(head, part, asked=asked)
            else:
                is_first = not self._partial.written and part.start == 0 and self._num_connections == 1
                plan.accept_whole(head, part, asked=asked, is_first=is_first)
            self._partial.origin = plan.origin
            if plan.size is not None:
                await self._expect(plan.size)
            await self._copy(response, head, part, writer)

    async def _expect(self, size: int) -> None:
        with self._monitor.waiting_for_disk():
            await self._partial.expect(size)

    async def _copy(self, response: httpx.Response, head: ReplyHead, part: Part, writer: PartWriter) -> None:
        """Write a body where it belongs, and count its bytes."""
        position = part.start
        limit = self._request.max_bytes if part.end is None else part.end
        async with writer.writing(part), body_of(response) as body:
            while num_bytes := await body.read_into(writer.space):
                position += num_bytes
                self._monitor.num_received += num_bytes
                self._counts.received(self._request.kind, num_bytes)
                if position > limit:
                    self._refuse_more(head, part, position)
                if part.end is None:
                    await self._expect(min(limit, position + _UNKNOWN_SIZE_STEP))
                await writer.add(num_bytes)
        if part.end is None:
            part.end = self._plan.size = position
        elif position < part.end:
            self._refuse_fewer(head)
        part.is_done = True

    def _refuse_more(self, head: ReplyHead, part: Part, position: int) -> NoReturn:
        if head.is_partial:
            self._plan.give_up_ranges()
        if part.end is None:
            self._request.check_size(position)
        raise SizeMismatch("the file is longer than was promised", blob=self._request.kind)

    def _refuse_fewer(self, head: ReplyHead) -> NoReturn:
        """A chunked body states its own end, and is too short; any other may have been cut off."""
        if not head.is_partial and head.is_chunked:
            raise SizeMismatch("the file is shorter than was promised", blob=self._request.kind)
        raise Broken("the server closed the connection before the whole file had come")


def _raise_first(tasks: set[asyncio.Task[None]]) -> None:
    failures = [error for task in tasks if (error := task.exception()) is not None]
    if failures:
        raise failures[0]
