"""The cache: shared downloads, eviction, what a crash leaves, and a full disk."""

import asyncio
import contextlib
import errno
import gc
import os
import shutil
import stat
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.blob import BlobRef
from service.cache.blob_cache import BlobCache, CachedBlob, CacheInUse, ForeignFolder
from service.cache.files import MAX_URLS, remember_url, was_delivered_by
from service.cache.index import Entry
from service.checksum import checksum_of
from service.download.partial_file import PartialFile
from service.download.throughput import DownloadProgress
from service.errors import BlobKind, Draining, ScoringError, ServiceTrouble
from tests import misbehaving_server as servers
from tests.misbehaving_server import MisbehavingServer, Reply, Request, random_bytes
from tests.service.delivery import MAX_BYTES, QUICK, Delivery, FakeDns, delivery

CONTENT = random_bytes(300_000)
SLOW = servers.slow_body(CONTENT, bytes_per_second=400_000)
ONE_CONNECTION = replace(QUICK, num_connections=1)


async def _fetch_all(d: Delivery, *blobs: BlobRef) -> list[CachedBlob | BaseException]:
    return await asyncio.gather(*(d.fetch(blob) for blob in blobs), return_exceptions=True)


async def _until_asked(server: MisbehavingServer) -> None:
    while not server.requests:
        await asyncio.sleep(0.001)


# -- hits ----------------------------------------------------------------------------------------------------


async def test_what_a_url_has_delivered_is_served_without_the_network(tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        first = await d.fetch()
        num_requests, num_dialled = len(d.server.requests), len(d.network.dialled)
        second = await d.fetch()
        assert (first.was_cached, second.was_cached) == (False, True)
        assert (second.path, second.size, second.download_seconds) == (first.path, first.size, 0.0)
        assert (len(d.server.requests), len(d.network.dialled)) == (num_requests, num_dialled)


async def test_another_url_must_deliver_the_same_bytes_before_the_cache_answers_for_it(
    tmp_path: Path,
) -> None:
    """A result must not depend on what the cache happens to contain."""

    async def behave(request: Request, reply: Reply) -> None:
        if request.target == "/absent":
            await reply.head(404, content_length=0)
        else:
            await servers.honest(CONTENT if request.target != "/other" else bytes(300_000))(request, reply)

    async with delivery(tmp_path, behave) as d:
        await d.fetch()
        assert (await d.refused(d.blob(path="/other"))).full_code == "model-checksum-mismatch"
        assert (await d.refused(d.blob(path="/absent"))).full_code == "model-unavailable"
        assert not (await d.fetch(d.blob(path="/mirror"))).was_cached
        assert (await d.fetch(d.blob(path="/mirror"))).was_cached
        assert d.files() == [checksum_of(CONTENT)]


async def test_a_cached_blob_is_refused_for_the_same_reasons_as_a_downloaded_one(tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        await d.fetch()
        for blob, max_bytes, code in [
            (replace(d.blob(), size=299_999), MAX_BYTES, "model-size-mismatch"),
            (replace(d.blob(), size=None), 299_999, "model-too-large"),
            (replace(d.blob(), url="https://user@127.0.0.1/"), MAX_BYTES, "invalid-url"),
            (replace(d.blob(), url="http://127.0.0.1/"), MAX_BYTES, "url-forbidden"),
        ]:
            with pytest.raises(ScoringError) as caught:
                await d.fetch(blob, max_bytes=max_bytes)
            assert caught.value.full_code == code


async def test_without_a_checksum_it_is_downloaded_each_time_and_kept_under_its_own(tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        for _ in range(2):
            cached = await d.fetch(BlobRef(d.server.url()))
            assert (cached.checksum, cached.was_cached) == (checksum_of(CONTENT), False)
        assert d.files() == [checksum_of(CONTENT)]
        assert (await d.fetch()).was_cached


@pytest.mark.parametrize("checksum", ["", "../../etc/passwd", "1" * 44, "a/b", "\x00", "O0Il" * 11, "Ä" * 44])
async def test_what_is_no_checksum_never_becomes_a_path(tmp_path: Path, checksum: str) -> None:
    async with delivery(tmp_path) as d:
        assert (await d.refused(BlobRef(d.server.url(), checksum))).full_code == "model-checksum-mismatch"
        assert d.network.dialled == []


async def test_inline_data_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    async with delivery(tmp_path) as d:
        async with d.cache.hold(CONTENT) as first, d.cache.hold(CONTENT) as second:
            assert first.path.read_bytes() == second.path.read_bytes() == CONTENT
            assert first.checksum == checksum_of(CONTENT)
            assert d.cache.bytes_used == 2 * len(CONTENT)
        assert (d.files(), d.cache.bytes_used, synced) == ([], 0, [])


async def test_inline_data_evicts_what_is_not_in_use_and_nothing_else(tmp_path: Path) -> None:
    async with delivery(tmp_path, max_bytes=250_000) as d:
        first, second, third = _contents(3)
        async with d.stored(first):
            pass
        async with d.stored(second) as kept:
            async with d.cache.hold(third):
                assert kept.path.read_bytes() == second
            async with d.cache.hold(third), d.cache.hold(b"x" * 50_000):
                with pytest.raises(ScoringError) as caught:
                    async with d.cache.hold(b"x"):
                        pass
                assert caught.value.full_code == "insufficient-storage"


async def test_a_file_that_was_deleted_or_truncated_is_downloaded_again(tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        cached = await d.fetch()
        for size in (10, None):
            os.truncate(cached.path, size) if size else cached.path.unlink()
            assert not (await d.fetch()).was_cached
            assert (await d.fetch()).was_cached


async def test_only_the_owner_may_read_what_lies_there(tmp_path: Path) -> None:
    os.umask(0)
    try:
        async with delivery(tmp_path / "data") as d, d.stored(b"data"):
            await d.fetch()
            for path in (d.folder, *d.folder.rglob("*")):
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
    finally:
        os.umask(0o022)


# -- shared downloads ----------------------------------------------------------------------------------------------


async def test_fifty_requests_for_a_blob_are_one_download(tmp_path: Path) -> None:
    async with delivery(tmp_path, SLOW) as d:
        results = await _fetch_all(d, *[d.blob()] * 50)
        assert {type(result) for result in results} == {CachedBlob}
        assert d.bytes_sent() == len(CONTENT)


async def test_cancelling_one_waiter_does_not_affect_the_others(tmp_path: Path) -> None:
    async with delivery(tmp_path, SLOW) as d:
        tasks = [asyncio.create_task(d.fetch()) for _ in range(50)]
        await _until_asked(d.server)
        for task in tasks[:49]:  # the one that began the download among them
            task.cancel()
        assert not (await tasks[49]).was_cached
        assert d.bytes_sent() == len(CONTENT)
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_when_the_last_waiter_is_cancelled_so_is_the_download(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.silent) as d:
        tasks = [asyncio.create_task(d.fetch()) for _ in range(5)]
        await _until_asked(d.server)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        while d.files():
            await asyncio.sleep(0.001)
        await d.assert_still_works()


async def test_a_request_during_the_cancellation_of_a_download_gets_a_new_one(tmp_path: Path) -> None:
    async with delivery(tmp_path, SLOW) as d:
        for _ in range(10):
            task = asyncio.create_task(d.fetch())
            await asyncio.sleep(0.02)
            task.cancel()
            await asyncio.sleep(0)
        assert not (await d.fetch()).was_cached


async def test_failures_are_shared_by_those_who_wait_and_then_forgotten(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.replying(404)) as d:
        failures = await _fetch_all(d, *[d.blob()] * 10)
        assert {getattr(failure, "full_code", None) for failure in failures} == {"model-unavailable"}
        assert len({id(failure) for failure in failures}) == 10
        assert len(d.server.requests) == 1
        d.server.behave = servers.honest(CONTENT)
        assert not (await d.fetch()).was_cached


async def test_another_urls_failure_does_not_affect_a_request_for_the_same_bytes(tmp_path: Path) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        if request.target == "/mine":
            await servers.honest(CONTENT)(request, reply)
        else:
            await asyncio.sleep(0.05)
            await reply.head(404, content_length=0)

    async with delivery(tmp_path, behave) as d:
        theirs, mine = await _fetch_all(d, d.blob(path="/theirs"), d.blob(path="/mine"))
        assert getattr(theirs, "full_code", None) == "model-unavailable"
        assert isinstance(mine, CachedBlob)


async def test_another_requests_promised_size_does_not_affect_a_request_for_the_same_url(
    tmp_path: Path,
) -> None:
    async with delivery(tmp_path) as d:
        results = await _fetch_all(d, d.blob(size=1), d.blob(size=None), d.blob())
        assert getattr(results[0], "full_code", None) == "model-size-mismatch"
        assert [type(result) for result in results[1:]] == [CachedBlob] * 2


async def test_another_urls_slow_server_does_not_delay_a_request_for_the_same_bytes(tmp_path: Path) -> None:
    barely = servers.slow_body(CONTENT, bytes_per_second=1.5 * QUICK.min_bytes_per_second)
    async with delivery(tmp_path) as d, MisbehavingServer(barely) as slow:
        theirs = asyncio.create_task(d.fetch(replace(d.blob(), url=slow.url())))
        await _until_asked(slow)
        began = time.monotonic()
        assert not (await d.fetch()).was_cached
        assert time.monotonic() - began < 5 * QUICK.base_timeout_seconds
        theirs.cancel()
        await asyncio.gather(theirs, return_exceptions=True)


async def test_progress_is_reported_to_every_waiter(tmp_path: Path) -> None:
    counts = [0] * 5
    async with delivery(tmp_path, SLOW) as d:

        async def fetch(i: int) -> None:
            def count(_: object) -> None:
                counts[i] += 1

            await d.fetch(on_progress=count)

        await asyncio.gather(*(fetch(i) for i in range(5)))
    assert min(counts) > 0


# -- room ----------------------------------------------------------------------------------------------------


def _contents(num: int) -> list[bytes]:
    return [random_bytes(100_000, seed=i) for i in range(num)]


async def test_the_oldest_use_is_evicted_first(tmp_path: Path) -> None:
    first, second, third = _contents(3)
    async with delivery(tmp_path, max_bytes=250_000) as d:
        for content in (first, second, first, third):
            async with d.stored(content):
                await asyncio.sleep(0.01)
        assert d.files() == sorted(map(checksum_of, (first, third)))
        assert d.cache.bytes_used == 200_000


async def test_what_is_in_use_is_never_evicted(tmp_path: Path) -> None:
    first, second, third = _contents(3)
    async with delivery(tmp_path, max_bytes=250_000) as d:
        async with d.stored(first) as a, d.stored(second) as b:
            with pytest.raises(ScoringError) as caught:
                async with d.stored(third):
                    pass
            assert (caught.value.full_code, caught.value.fault) == ("insufficient-storage", "service")
            assert (await d.refused()).full_code == "insufficient-storage"
            assert (a.path.read_bytes(), b.path.read_bytes()) == (first, second)
        async with d.stored(third) as c:
            assert c.path.read_bytes() == third


async def test_no_room_is_promised_twice(tmp_path: Path) -> None:
    async with delivery(tmp_path, max_bytes=400_000) as d:
        d.server.behave = SLOW
        task = asyncio.create_task(d.fetch())
        await _until_asked(d.server)
        with pytest.raises(ScoringError, match="in use"):
            async with d.cache.hold(_contents(1)[0] + b"x"):
                pass
        assert not (await task).was_cached


@pytest.mark.parametrize("promised", [True, False])
async def test_a_length_that_is_only_claimed_evicts_nothing(tmp_path: Path, promised: bool) -> None:
    """Whoever claims a large file and sends nothing must not take the others' files away."""
    contents = [random_bytes(10_000, seed=i) for i in range(20)]
    claimed = 10 * len(contents[0])
    lying = servers.replying(200, b"a few bytes", content_length=claimed)
    async with delivery(tmp_path, lying, max_bytes=210_000, limits=ONE_CONNECTION) as d:
        for content in contents:
            async with d.stored(content):
                pass
        blob = BlobRef(d.server.url(), checksum_of(CONTENT), claimed if promised else None)
        with pytest.raises(ScoringError):
            await d.fetch(blob)
        kept = set(d.files()) & {checksum_of(content) for content in contents}
        assert len(kept) >= len(contents) - 1  # room is taken a few writes ahead


async def test_files_are_evicted_as_bytes_are_received(tmp_path: Path) -> None:
    contents = [random_bytes(10_000, seed=i) for i in range(20)]
    async with delivery(tmp_path, max_bytes=310_000) as d:
        for content in contents:
            async with d.stored(content):
                pass
        assert not (await d.fetch()).was_cached
        assert d.files() == sorted([checksum_of(CONTENT), checksum_of(contents[-1])])
        assert d.cache.bytes_used == 310_000


async def test_a_file_larger_than_the_cache_is_refused(tmp_path: Path) -> None:
    async with delivery(tmp_path, max_bytes=299_999) as d:
        assert (await d.refused()).full_code == "insufficient-storage"
        assert d.cache.bytes_used == 0


async def test_nothing_is_evicted_in_vain(tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        async with d.stored(b"old"):
            pass
        for size in (65 << 20, 1 << 50):  # more than the cache takes, more than the disk has
            await d.refused(BlobRef(d.server.url(), checksum_of(CONTENT), size), max_bytes=1 << 60)
        assert d.files() == [checksum_of(b"old")]


async def test_after_many_failures_nothing_is_reserved(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.honest(random_bytes(len(CONTENT), seed=9))) as d:
        for _ in range(5):
            await d.refused()
        await d.refused(BlobRef(d.server.url(), None, 5))
        assert d.cache.bytes_used == 0


# -- start and stop --------------------------------------------------------------------------------------------


async def test_after_a_restart_the_files_are_found_again(tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        blob = d.blob()
        await d.fetch(blob)
    async with delivery(tmp_path) as d:
        assert (await d.fetch(blob)).was_cached
        assert d.network.dialled == []


async def test_a_kill_after_a_file_is_published_does_not_cost_a_second_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish = PartialFile.publish

    async def publish_and_look(partial: PartialFile, destination: Path, size: int) -> None:
        await publish(partial, destination, size)
        kept = tmp_path / "as-killed-now"
        shutil.copytree(destination.parents[1], kept, ignore=shutil.ignore_patterns("lock"))

    monkeypatch.setattr(PartialFile, "publish", publish_and_look)
    async with delivery(tmp_path / "data") as d:
        await d.fetch()
        blob = d.blob()
    async with delivery(tmp_path / "as-killed-now") as after_the_kill:
        assert (await after_the_kill.fetch(blob)).was_cached  # its server is gone


async def test_a_file_that_cannot_be_published_leaves_no_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(partial: PartialFile, destination: Path, size: int) -> None:
        raise OSError(errno.EIO, "the disk is broken")

    async with delivery(tmp_path) as d:
        with monkeypatch.context() as patched:
            patched.setattr(PartialFile, "publish", fail)
            with pytest.raises(ServiceTrouble):
                await d.fetch()
        assert list((tmp_path / "urls").iterdir()) == []
        assert not (await d.fetch()).was_cached


async def test_of_many_urls_the_latest_are_remembered(tmp_path: Path) -> None:
    entry = Entry(tmp_path, checksum_of(CONTENT), len(CONTENT), 0.0)
    digests = [str(i) for i in range(MAX_URLS + 1)]
    for digest in digests:
        remember_url(entry, tmp_path, digest)
    restarted = replace(entry, urls=None)
    for known in (entry, restarted):
        assert [was_delivered_by(known, tmp_path, digest) for digest in digests] == [False] + [
            True
        ] * MAX_URLS


async def test_the_order_of_use_outlives_a_restart(tmp_path: Path) -> None:
    first, second, third = _contents(3)
    async with delivery(tmp_path, max_bytes=250_000) as d:
        for content in (first, second, first):
            async with d.stored(content):
                await asyncio.sleep(0.01)
    async with delivery(tmp_path, max_bytes=250_000) as d, d.stored(third):
        assert d.files() == sorted(map(checksum_of, (first, third)))


async def test_what_a_crash_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        blob = d.blob()
        await d.fetch(blob)
    good = tmp_path / "blobs" / checksum_of(CONTENT)
    rest = [
        tmp_path / "blobs" / "not-a-checksum",
        tmp_path / "partial" / "0123456789abcdef.part",
        tmp_path / "partial" / f"{checksum_of(b'')}.part",
        tmp_path / "partial" / f"{checksum_of(b'a')}.json",
        tmp_path / "partial" / "something.evicted",
        tmp_path / "urls" / f"{checksum_of(b'c')}.urls",
        tmp_path / "urls" / f"{checksum_of(CONTENT)}.draft",
    ]
    for path in rest:
        path.write_bytes(b"rest")
    outside = tmp_path / "outside"
    outside.write_bytes(b"not ours")
    (tmp_path / "blobs" / checksum_of(b"b")).symlink_to(outside)
    async with delivery(tmp_path) as d:
        assert d.files() == sorted([good.name, "outside"])
        assert [path.stem for path in (tmp_path / "urls").iterdir()] == [good.name]
        assert (await d.fetch(blob)).was_cached
    assert outside.read_bytes() == b"not ours"


async def test_a_directory_serves_one_service(tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        second = BlobCache(tmp_path, d.downloader, max_bytes=1)
        with pytest.raises(CacheInUse):
            await second.start()
        await second.close()
        blob = d.blob()
        assert not (await d.fetch(blob)).was_cached
    async with delivery(tmp_path) as d:
        assert (await d.fetch(blob)).was_cached


async def test_closing_cancels_downloads_and_their_waiters_get_draining(tmp_path: Path) -> None:
    async with delivery(tmp_path, servers.silent) as d:
        task = asyncio.create_task(d.fetch())
        await _until_asked(d.server)
        await d.cache.close()
        with pytest.raises(Draining):
            await task
        with pytest.raises(Draining):
            await d.fetch()
        assert d.files() == []


async def test_an_interrupted_download_is_resumed_by_the_next_request(tmp_path: Path) -> None:
    broken = servers.breaking_after(10_000, CONTENT, reset=False)
    limits = replace(ONE_CONNECTION, max_attempts=6, part_bytes=1 << 20)
    async with delivery(tmp_path, broken, limits=limits) as d:
        with pytest.raises(ScoringError):
            await d.fetch()
        assert [Path(name).suffix for name in d.files()] == [".json", ".part"]
        d.server.behave = servers.honest(CONTENT)
        d.server.requests.clear()
        await d.fetch()
        assert d.bytes_sent() == len(CONTENT) - 60_000


async def _begin(d: Delivery, blob: BlobRef) -> asyncio.Task[CachedBlob]:
    """A fetch from a slow server, of which a third of the file has been received."""
    received = asyncio.Event()

    def look(progress: DownloadProgress) -> None:
        if progress.bytes_done > len(CONTENT) // 3:
            received.set()

    task = asyncio.create_task(d.fetch(blob, on_progress=look))
    await received.wait()
    return task


async def _close_midway(d: Delivery, blob: BlobRef) -> None:
    """Close the cache when a third of the file has been received."""
    task = await _begin(d, blob)
    await d.cache.close()
    await asyncio.gather(task, return_exceptions=True)


async def _until_kept(d: Delivery) -> None:
    """Until an interrupted download has left its file and its note."""
    while [Path(name).suffix for name in d.files()] != [".json", ".part"] or not d.cache.bytes_used:
        await asyncio.sleep(0.001)


async def test_after_a_restart_an_interrupted_download_is_resumed(tmp_path: Path) -> None:
    async with MisbehavingServer(SLOW) as server:
        blob = BlobRef(server.url(), checksum_of(CONTENT), len(CONTENT))
        async with delivery(tmp_path, limits=ONE_CONNECTION) as d:
            await _close_midway(d, blob)
            assert len(d.files()) == 2
        server.requests.clear()
        async with delivery(tmp_path) as d:
            assert len(CONTENT) // 3 <= d.cache.bytes_used < len(CONTENT)  # what was received, and no more
            await d.fetch(blob)
            assert 0 < d.bytes_sent(server) < len(CONTENT) * 0.9
            assert d.files() == [checksum_of(CONTENT)]


async def test_a_download_without_a_checksum_leaves_nothing_to_resume(tmp_path: Path) -> None:
    async with delivery(tmp_path, SLOW, limits=ONE_CONNECTION) as d:
        await _close_midway(d, BlobRef(d.server.url()))
        assert d.files() == []


async def test_wrong_bytes_of_an_earlier_attempt_do_not_make_the_file_wrong(tmp_path: Path) -> None:
    """A competitor who promises the checksum of another's file and serves half of something else must not
    make the other's download fail."""
    other = servers.slow_body(random_bytes(len(CONTENT), seed=1), bytes_per_second=400_000)
    async with delivery(tmp_path, other, limits=ONE_CONNECTION) as d:
        task = await _begin(d, d.blob())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await _until_kept(d)
        d.server.behave = servers.honest(CONTENT)
        d.server.requests.clear()
        assert not (await d.fetch()).was_cached
        assert len(CONTENT) < d.bytes_sent() < 2 * len(CONTENT)  # the rest, and then all of it


@pytest.mark.parametrize("note", ["", "{}", "[]", '{"total": 9, "etag": null, "done": [[0, 99]]}'])
async def test_with_a_damaged_note_the_download_starts_from_the_beginning(tmp_path: Path, note: str) -> None:
    async with MisbehavingServer(SLOW) as server:
        blob = BlobRef(server.url(), checksum_of(CONTENT), len(CONTENT))
        async with delivery(tmp_path, limits=ONE_CONNECTION) as d:
            await _close_midway(d, blob)
        (spoilt,) = (tmp_path / "partial").glob("*.json")
        spoilt.write_text(note)
        server.requests.clear()
        async with delivery(tmp_path) as d:
            await d.fetch(blob)
            assert d.bytes_sent(server) == len(CONTENT)


async def test_leftovers_are_evicted_like_anything_else_and_their_notes_with_them(tmp_path: Path) -> None:
    broken = servers.breaking_after(10_000, CONTENT, reset=False)
    async with delivery(
        tmp_path,
        broken,
        limits=replace(ONE_CONNECTION, max_attempts=6, part_bytes=1 << 20),
        max_bytes=310_000,
    ) as d:
        with pytest.raises(ScoringError):
            await d.fetch()
        assert [Path(name).suffix for name in d.files()] == [".json", ".part"]
        content = random_bytes(len(CONTENT), seed=1)
        async with d.stored(content):
            assert d.files() == [checksum_of(content)]


# -- cancellation at any moment -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _slow(name: str, part_of_name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A function of `os` takes its time with some files; the event says that it has begun."""
    begun = threading.Event()
    real = getattr(os, name)

    def slow(path: int | str | Path, *args: Any, **options: Any) -> Any:
        if isinstance(path, int) or part_of_name in str(path):
            begun.set()
            time.sleep(0.1)
        return real(path, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, slow)
        yield begun


async def _leave_during(begun: threading.Event, work: Coroutine[Any, Any, Any]) -> None:
    task = asyncio.create_task(work)
    await asyncio.to_thread(begun.wait)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    begun.clear()


async def test_a_request_that_is_cancelled_while_the_file_is_opened_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with delivery(tmp_path) as d:
        with _slow("open", ".part", monkeypatch) as begun:
            for _ in range(3):
                await _leave_during(begun, d.fetch(BlobRef(d.server.url())))
            await d.cache.close()
        assert d.files() == []
        assert [file.path for file in psutil.Process().open_files() if str(tmp_path) in file.path] == []


async def test_a_request_that_is_cancelled_while_a_leftover_is_opened_loses_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = servers.breaking_after(10_000, CONTENT, reset=False)
    limits = replace(ONE_CONNECTION, max_attempts=6, part_bytes=1 << 20)
    async with delivery(tmp_path, broken, limits=limits) as d:
        with pytest.raises(ScoringError):
            await d.fetch()
        with _slow("open", ".part", monkeypatch) as begun:
            await _leave_during(begun, d.fetch())
        d.server.behave = servers.honest(CONTENT)
        d.server.requests.clear()
        await d.fetch()
        assert d.bytes_sent() == len(CONTENT) - 60_000


async def test_a_request_that_is_cancelled_while_inline_data_is_written_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hold() -> None:
        async with d.cache.hold(CONTENT):
            pass

    async with delivery(tmp_path) as d:
        with _slow("open", ".part", monkeypatch) as begun:
            await _leave_during(begun, hold())
        assert (d.files(), d.cache.bytes_used) == ([], 0)


async def test_an_eviction_is_completed_although_the_request_that_needed_space_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hold() -> None:
        async with d.cache.hold(_contents(1)[0]):
            pass

    async with delivery(tmp_path, max_bytes=350_000) as d:
        await d.fetch()
        assert list((tmp_path / "urls").iterdir()) != []
        with _slow("unlink", ".evicted", monkeypatch) as begun:
            await _leave_during(begun, hold())
        assert (d.files(), d.cache.bytes_used) == ([], 0)
        assert list((tmp_path / "urls").iterdir()) == []


# -- the event loop --------------------------------------------------------------------------------------------


async def test_the_event_loop_is_never_busy_for_long(tmp_path: Path) -> None:
    """Measured in processor time of its thread, which does not depend on what else the machine does."""
    content = random_bytes(40 << 20)
    longest = 0.0

    async def watch() -> None:
        nonlocal longest
        while True:
            before = time.thread_time()
            await asyncio.sleep(0.001)
            longest = max(longest, time.thread_time() - before)

    limits = replace(QUICK, write_bytes=1 << 20, part_bytes=16 << 20, base_timeout_seconds=60.0)
    async with delivery(tmp_path, content=content, limits=limits) as d:
        gc.collect()
        watcher = asyncio.create_task(watch())
        async with d.cache.fetch(d.blob(), kind="model", max_bytes=1 << 30):
            watcher.cancel()
    assert 0 < longest < 0.2


@contextlib.contextmanager
def _disk_full_after(num_bytes: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    written = 0
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        nonlocal written
        written += len(data)
        if written > num_bytes:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        yield


@contextlib.contextmanager
def _failing_once(name: str, number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The first call of a function of `os` fails, all others pass."""
    failures = [OSError(number, os.strerror(number))]
    real = getattr(os, name)

    def fail(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fail)
        yield


async def test_a_disk_that_fills_midway_is_insufficient_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with delivery(tmp_path) as d:
        with _disk_full_after(150_000, monkeypatch):
            assert (await d.refused()).full_code == "insufficient-storage"
        await d.assert_still_works()


async def test_when_the_disk_fills_midway_unused_files_are_evicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with delivery(tmp_path) as d:
        async with d.stored(b"old"):
            pass
        real = os.posix_fallocate

        def fallocate(fd: int, offset: int, size: int) -> None:
            if checksum_of(b"old") in d.files():
                raise OSError(errno.ENOSPC, "No space left on device")
            real(fd, offset, size)

        monkeypatch.setattr(os, "posix_fallocate", fallocate)
        await d.fetch()
        assert d.files() == [checksum_of(CONTENT)]


@pytest.mark.parametrize("sync", ["fdatasync", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
async def test_bytes_that_find_no_room_when_they_are_synced_are_insufficient_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, number: int
) -> None:
    async with delivery(tmp_path) as d:
        with _failing_once(sync, number, monkeypatch):
            assert (await d.refused()).full_code == "insufficient-storage"
        await d.assert_still_works()


@pytest.mark.parametrize("sync", ["fdatasync", "fsync"])
@pytest.mark.parametrize("sync_bytes", [1 << 15, 200_000, 300_000])
async def test_bytes_that_the_disk_lost_are_never_published_nor_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sync: str, sync_bytes: int
) -> None:
    """Linux reports them once: the next sync of the same file succeeds."""
    async with delivery(tmp_path, limits=replace(QUICK, sync_bytes=sync_bytes)) as d:
        with _failing_once(sync, errno.EIO, monkeypatch):
            failure = await d.refused()
        assert (failure.full_code, failure.fault, failure.retryable) == ("out-of-resources", "service", True)
        await d.assert_still_works()


async def test_a_download_that_breaks_off_after_the_disk_lost_bytes_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def behave(request: Request, reply: Reply) -> None:
        await reply.head(200, content_length=len(CONTENT))
        await reply.raw(CONTENT[: QUICK.sync_bytes])
        await asyncio.sleep(3600)

    async with delivery(tmp_path, behave, limits=replace(ONE_CONNECTION, max_attempts=1)) as d:
        with _failing_once("fdatasync", errno.EIO, monkeypatch):
            assert (await d.refused()).full_code == "model-unavailable"


KINDS: list[BlobKind] = ["data", "model"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_full_disk_is_a_service_failure(
    tmp_path: Path, kind: BlobKind, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fallocate(fd: int, offset: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    async with delivery(tmp_path, dns=FakeDns()) as d:
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", fallocate)
            failure = await d.refused(kind=kind)
        assert (failure.full_code, failure.fault, failure.retryable) == (
            "insufficient-storage",
            "service",
            True,
        )
        assert d.server.requests == []
        await d.assert_still_works()


# -- cancellation of a reset -------------------------------------------------------------------------------------------


async def test_a_download_that_is_cancelled_while_it_starts_over_sends_no_further_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file changes with every request: each time the bytes are forgotten after the last write has ended."""
    real = PartialFile.reset
    resetting = asyncio.Event()

    async def behave(request: Request, reply: Reply) -> None:
        await servers.honest(CONTENT, etag=f'"{request.number}"')(request, reply)

    async def reset(partial: PartialFile) -> None:
        resetting.set()
        await real(partial)

    async with delivery(tmp_path, behave, limits=replace(ONE_CONNECTION, max_attempts=50)) as d:
        with _slow("pwrite", "", monkeypatch):
            monkeypatch.setattr(PartialFile, "reset", reset)
            task = asyncio.create_task(d.fetch())
            await resetting.wait()
            num_requests = len(d.server.requests)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await d.cache.close()
        assert len(d.server.requests) == num_requests


# -- the folder ------------------------------------------------------------------------------------------------


def _tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "names",
    [
        ["blobs/holiday.jpg"],
        ["partial/thesis.tex", "lock"],
        ["urls/bookmarks.txt"],
        ["notes.txt"],
        ["CACHEDIR.TAG", "blobs/of-another-program"],
        ["lock", "blobs/deep/er"],
    ],
)
async def test_a_folder_with_files_of_others_is_refused_and_left_alone(
    tmp_path: Path, names: list[str]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    before = _tree(tmp_path)
    with pytest.raises(ForeignFolder, match="--data-dir a folder that is new or empty"):
        async with delivery(tmp_path):
            pass
    assert _tree(tmp_path) == before


async def test_a_cache_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    async with delivery(tmp_path) as d:
        blob = d.blob()
        await d.fetch(blob)
    (tmp_path / "CACHEDIR.TAG").unlink()
    async with delivery(tmp_path) as d:
        assert (await d.fetch(blob)).was_cached
    assert (tmp_path / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


async def test_the_root_of_a_new_file_system_counts_as_empty(tmp_path: Path) -> None:
    (tmp_path / "lost+found").mkdir()
    async with delivery(tmp_path) as d:
        await d.fetch()
