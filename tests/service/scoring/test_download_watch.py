"""How long one request waits for a download, and whose fault it is: real downloads from a real server."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from service.cache.blob_cache import CachedBlob
from service.download.throughput import DownloadProgress
from service.errors import DownloadTimeout, OutOfResources
from service.scoring.download_watch import DownloadWatch, SlotWanted
from tests.misbehaving_server import Reply, Request, honest, random_bytes, silent, slow_body
from tests.service.delivery import QUICK, Delivery, delivery

CONTENT = random_bytes(300_000)
ONE_SECOND_LONG = slow_body(CONTENT, bytes_per_second=300_000)
LONG_TIMEOUT = replace(QUICK, base_timeout_seconds=30.0)


def watch(
    d: Delivery,
    *,
    seconds_left: Callable[[], float] = lambda: 60.0,
    waited_seconds: float = 0.0,
    is_online: bool = True,
) -> DownloadWatch:
    """That of a request which was admitted so long before it began to ask."""

    async def answer() -> bool:
        return is_online

    return DownloadWatch(
        "model",
        d.cache.download_limits,
        most_bytes=len(CONTENT),
        request_started=asyncio.get_running_loop().time() - waited_seconds,
        seconds_left=seconds_left,
        is_online=answer,
    )


async def wait(d: Delivery, watching: DownloadWatch, *, is_slot_wanted: bool = False) -> CachedBlob:
    def note(progress: DownloadProgress) -> None:
        watching.note(progress, is_slot_wanted=is_slot_wanted)

    async with AsyncExitStack() as pins:
        fetching = d.cache.fetch(d.blob(CONTENT), kind="model", max_bytes=1 << 20, on_progress=note)
        return await watching.wait(pins.enter_async_context(fetching))


async def test_one_request_gives_up_and_another_goes_on_with_the_same_download(tmp_path: Path) -> None:
    async with delivery(tmp_path, ONE_SECOND_LONG, content=CONTENT) as d:
        waiting = asyncio.create_task(wait(d, watch(d)))
        with pytest.raises(DownloadTimeout) as caught:
            await wait(d, watch(d, seconds_left=lambda: 0.0))
        assert not waiting.done()
        assert (await waiting).size == len(CONTENT)
        assert d.bytes_sent() < 2 * len(CONTENT)
    assert (caught.value.fault, caught.value.blob) == ("model_owner", "model")


async def test_no_publisher_is_too_slow_while_this_machine_is_not_online(tmp_path: Path) -> None:
    async with delivery(tmp_path, ONE_SECOND_LONG, content=CONTENT) as d:
        with pytest.raises(OutOfResources):
            await wait(d, watch(d, seconds_left=lambda: 0.0, is_online=False))


async def test_a_publisher_is_not_blamed_for_what_a_request_has_waited_before(tmp_path: Path) -> None:
    """Had its bytes been asked for all the time, they would be here."""
    async with delivery(tmp_path, ONE_SECOND_LONG, content=CONTENT) as d:
        blob = await wait(d, watch(d, seconds_left=lambda: 0.0, waited_seconds=30.0))
        assert blob.size == len(CONTENT)


async def test_a_slot_that_is_wanted_is_given_up_only_by_a_download_that_is_slow(tmp_path: Path) -> None:
    async with delivery(tmp_path, ONE_SECOND_LONG, content=CONTENT, limits=LONG_TIMEOUT) as d:
        assert (await wait(d, watch(d), is_slot_wanted=True)).size == len(CONTENT)
    async with delivery(tmp_path / "silent", silent, content=CONTENT, limits=LONG_TIMEOUT) as d:
        with pytest.raises(SlotWanted):
            await wait(d, watch(d), is_slot_wanted=True)


async def test_what_one_attempt_has_received_is_there_for_the_next(tmp_path: Path) -> None:
    """The server sends a part of the file and hangs; asked again, it sends the rest."""

    async def behave(request: Request, reply: Reply) -> None:
        if request.number == 1:
            await silent(request, reply)
        await honest(CONTENT)(request, reply)

    async with delivery(tmp_path, behave, content=CONTENT, limits=LONG_TIMEOUT) as d:
        watching = watch(d)
        with pytest.raises(SlotWanted) as given_up:
            await wait(d, watching, is_slot_wanted=True)
        assert 0 < given_up.value.progress.bytes_done < len(CONTENT)
        assert (await wait(d, watching, is_slot_wanted=True)).size == len(CONTENT)
        spans = [request.span(len(CONTENT)) for request in d.server.requests[2:]]
    assert sum(end - start for start, end in filter(None, spans)) < len(CONTENT)
