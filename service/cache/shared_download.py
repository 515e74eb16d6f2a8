"""Single flight: requests for the same file at the same time share one download."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from service.cache.index import CacheIndex, Entry
from service.download.request import DownloadRequest
from service.download.throughput import DownloadProgress, OnDownloadProgress
from service.errors import Draining


class SharedDownload:
    """One running download and everybody who waits for it.

    It is cancelled when the last of them leaves. The entry that it results in has one pin of its own until then.
    """

    def __init__(
        self,
        index: CacheIndex,
        request: DownloadRequest,
        work: Callable[["SharedDownload"], Coroutine[Any, Any, Entry]],
        on_end: Callable[[], None],
    ) -> None:
        """`work` returns an entry with one pin. `on_end` is called when it is over."""
        self.request = request
        self.is_cancelled = False
        self.latest: DownloadProgress | None = None
        """How far it was at the last report."""
        self.is_publishing = False
        """Set when all bytes are verified: from then on it is not interrupted."""
        self._index = index
        self._listeners: set[OnDownloadProgress] = set()
        self._num_waiters = 0
        self._is_released = False
        self._task = asyncio.create_task(work(self))
        self._task.add_done_callback(lambda _: on_end())
        self._task.add_done_callback(lambda _: self._release_if_unused())

    async def wait(self, on_progress: OnDownloadProgress | None) -> Entry:
        """The downloaded file's entry, with a pin for the caller. Raises what the download raised; Draining."""
        self._num_waiters += 1
        if on_progress is not None:
            self._listeners.add(on_progress)
        try:
            await self.wait_for_end()
            if self._task.cancelled():
                raise Draining("the service is stopping")
            if (failure := self._task.exception()) is not None:
                raise _copy_of(failure) from None
            entry = self._task.result()
            self._index.pin(entry)
            return entry
        finally:
            self._num_waiters -= 1
            if on_progress is not None:
                self._listeners.discard(on_progress)
            if self._num_waiters == 0 and not self._task.done():
                self.cancel()
            self._release_if_unused()

    async def wait_for_end(self) -> None:
        """Wait until it is over, however it ends."""
        await asyncio.wait([self._task])

    def cancel(self) -> None:
        """Cancel the download, unless it is being published."""
        self.is_cancelled = True
        if not self.is_publishing:
            self._task.cancel()

    def report(self, progress: DownloadProgress) -> None:
        """Call everybody's callback; one that fails does not affect the others."""
        self.latest = progress
        for listener in self._listeners:
            asyncio.get_running_loop().call_soon(listener, progress)

    def _release_if_unused(self) -> None:
        """Remove the download's own pin, once, when it is over and nobody waits for it."""
        if self._num_waiters > 0 or not self._task.done() or self._is_released:
            return
        self._is_released = True
        if not self._task.cancelled() and self._task.exception() is None:
            self._index.unpin(self._task.result())


class SharedDownloads:
    """The running downloads by name."""

    def __init__(self, index: CacheIndex) -> None:
        self._index = index
        self._running: dict[str, SharedDownload] = {}

    def get(self, name: str) -> SharedDownload | None:
        """The running download of this name."""
        return self._running.get(name)

    def running(self) -> list[SharedDownload]:
        """All that run, the first to be started first."""
        return list(self._running.values())

    def start(
        self,
        name: str,
        request: DownloadRequest,
        work: Callable[[SharedDownload], Coroutine[Any, Any, Entry]],
    ) -> SharedDownload:
        """Start a download under a name that no running one has. `work` returns an entry with one pin."""
        download = SharedDownload(self._index, request, work, lambda: self._end(name))
        self._running[name] = download
        return download

    def _end(self, name: str) -> None:
        del self._running[name]

    async def close(self) -> None:
        """Cancel every download, and wait until all are over."""
        running = list(self._running.values())
        for download in running:
            download.cancel()
        for download in running:
            await download.wait_for_end()


def _copy_of(failure: BaseException) -> BaseException:
    """A separate exception for each waiter: they add notes to it, and it collects a traceback."""
    copy = type(failure).__new__(type(failure), *failure.args)
    copy.__dict__.update(failure.__dict__)
    return copy
