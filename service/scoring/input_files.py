"""The files that one request evaluates: its data and each model's weights, downloaded or from the cache.

A file is here for the length of a with-block. What a publisher takes too long to send is that publisher's
DownloadTimeout, in time for the rest of the request to be answered.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace

from service import tracing
from service.blob import BlobRef
from service.cache.blob_cache import BlobCache, CachedBlob
from service.download.throughput import DownloadProgress
from service.errors import BlobKind, EmptyData, SizeMismatch
from service.scoring.download_watch import DownloadWatch, SlotWanted
from service.scoring.limits import Limits
from service.scoring.progress import report_download
from service.scoring.results import OnProgress, Progress
from service.scoring.scheduler import Scheduler, Ticket, WeightsSlot


class InputFiles:
    """The files of one admitted request, each of which it fetches at most once at a time."""

    def __init__(
        self,
        cache: BlobCache,
        scheduler: Scheduler,
        ticket: Ticket,
        on_progress: OnProgress,
        limits: Limits,
    ) -> None:
        self._cache = cache
        self._scheduler = scheduler
        self._ticket = ticket
        self._on_progress = on_progress
        self._limits = limits

    @asynccontextmanager
    async def data(self, data: bytes | BlobRef) -> AsyncIterator[CachedBlob]:
        """The data in a file. Raises EmptyData, SizeMismatch, DownloadTimeout, and what BlobCache.fetch raises."""
        if isinstance(data, bytes):
            async with self._cache.hold(data) as blob:
                yield blob
            return
        # Bytes of another length have another checksum too, and that is the error to report: see the gRPC API.
        promised = data if data.checksum is None else replace(data, size=None)
        watch = self._watch("data", self._limits.max_data_bytes)

        def on_progress(progress: DownloadProgress) -> None:
            watch.note(progress, is_slot_wanted=False)
            report_download(self._on_progress, progress, "data", None)

        async with AsyncExitStack() as pins:
            fetching = self._cache.fetch(
                promised, kind="data", max_bytes=self._limits.max_data_bytes, on_progress=on_progress
            )
            with tracing.span("data", tracing.host_of(data.url)) as span:
                blob = await watch.wait(pins.enter_async_context(fetching))
                if data.size not in (None, blob.size):
                    raise SizeMismatch(
                        f"the data has {blob.size} bytes, not the number promised", blob="data"
                    )
                if blob.size == 0:
                    raise EmptyData("the data is empty", fault="data_submitter", blob="data")
                span.set(_of_file("data", blob))
            yield blob

    @asynccontextmanager
    async def weights_and_data(
        self, model_index: int, published: BlobRef, data: asyncio.Task[CachedBlob]
    ) -> AsyncIterator[tuple[CachedBlob, CachedBlob]]:
        """One model's weights and the data, both here. Raises DownloadTimeout and what BlobCache.fetch raises."""
        async with self.weights(model_index, published) as weights:
            if data.done():
                yield weights, data.result()
                return
        # While the data is downloaded, the weights stay in the cache but hold no slot that others need.
        await asyncio.wait([data])
        known = replace(published, checksum=weights.checksum, size=weights.size)
        async with self.weights(model_index, known, is_counted=False):
            yield weights, data.result()

    @asynccontextmanager
    async def weights(
        self, model_index: int, published: BlobRef, *, is_counted: bool = True
    ) -> AsyncIterator[CachedBlob]:
        """One model's weights, in a slot that is released to others while the download is slow and they wait.

        `is_counted`: whether the metrics of the cache count it. Raises DownloadTimeout and what BlobCache.fetch raises.
        """
        async with AsyncExitStack() as held:
            attributes = {"soma_eval.model.index": model_index, **tracing.host_of(published.url)}
            with tracing.span("weights", attributes) as span:
                weights = await self._hold_weights(held, model_index, published, is_counted=is_counted)
                span.set(_of_file("weights", weights))
            yield weights

    async def _hold_weights(
        self, held: AsyncExitStack, model_index: int, published: BlobRef, *, is_counted: bool
    ) -> CachedBlob:
        """One model's weights, which `held` then holds with their slot."""
        max_bytes = self._limits.max_model_bytes
        most_bytes = max_bytes if published.size is None else min(published.size, max_bytes)
        watch = self._watch("model", most_bytes)
        while True:
            size = self._cache.size_of(published)
            async with AsyncExitStack() as pins:
                slot = await pins.enter_async_context(
                    self._scheduler.weights_slot(
                        self._ticket, most_bytes if size is None else size, is_downloaded=size is not None
                    )
                )
                if size is not None and self._cache.size_of(published) is None:
                    continue  # evicted while it waited for its slot

                def on_progress(progress: DownloadProgress, slot: WeightsSlot = slot) -> None:
                    watch.note(progress, is_slot_wanted=slot.is_wanted)
                    report_download(self._on_progress, progress, "model", model_index)

                fetching = self._cache.fetch(
                    published,
                    kind="model",
                    max_bytes=max_bytes,
                    on_progress=on_progress,
                    is_counted=is_counted,
                )
                try:
                    weights = await watch.wait(pins.enter_async_context(fetching))
                except SlotWanted as wanted:
                    self._on_progress(_waits_again(wanted.progress, model_index))
                    continue
                slot.release_connection()
                await held.enter_async_context(pins.pop_all())
                return weights

    def _watch(self, kind: BlobKind, most_bytes: int) -> DownloadWatch:
        return DownloadWatch(
            kind,
            self._cache.download_limits,
            most_bytes=most_bytes,
            request_started=self._ticket.started,
            seconds_left=lambda: self._scheduler.seconds_for_downloads(self._ticket),
            is_online=self._cache.is_online,
        )


def _waits_again(progress: DownloadProgress, model_index: int) -> Progress:
    """A download that has released its slot keeps what it has so far."""
    return Progress(
        "queued",
        model_index=model_index,
        bytes_done=progress.bytes_done,
        bytes_total=progress.bytes_total,
    )


def _of_file(kind: str, blob: CachedBlob) -> tracing.Attributes:
    """What a span says of a file."""
    return {
        f"soma_eval.{kind}.checksum": blob.checksum,
        f"soma_eval.{kind}.bytes": blob.size,
        f"soma_eval.{kind}.cached": blob.was_cached,
    }
