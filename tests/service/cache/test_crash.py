"""Real processes killed in the middle of downloads, and real file systems that are full."""

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from service.blob import BlobRef
from service.cache.blob_cache import BlobCache, download_name
from service.checksum import checksum_of
from service.errors import ServiceTrouble
from tests import misbehaving_server as servers
from tests.file_systems import mounted, remount
from tests.misbehaving_server import MisbehavingServer, Reply, Request, random_bytes
from tests.service.delivery import delivery

pytestmark = pytest.mark.slow

SIZE = 200_000
CONTENT = random_bytes(300_000)
NUM_KILLS = 50


class FetchingProcess:
    """The parent of the processes that fetch."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def start(self, directory: Path, *blobs: BlobRef, **options: Any) -> int:
        """Begin to fetch in a process of its own; its id."""
        assert self._process.stdin is not None
        refs = [{"url": blob.url, "checksum": blob.checksum, "size": blob.size} for blob in blobs]
        job = {"directory": str(directory), "blobs": refs, **options}
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
        return int(await self._line(beginning_with="pid"))

    async def outcomes(self) -> Any:
        """The outcomes of the latest process: for each blob its checksum or the code of the failure."""
        return json.loads(await self._line(beginning_with="outcomes"))

    async def _line(self, *, beginning_with: str) -> str:
        assert self._process.stdout is not None
        while line := (await self._process.stdout.readline()).decode():
            kind, _, rest = line.partition(" ")
            if kind == beginning_with:
                return rest
        raise AssertionError("the process has ended")


@pytest.fixture
async def fetching() -> AsyncIterator[FetchingProcess]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.service.cache.fetching_child",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parents[3],
    )
    assert process.stdin is not None
    try:
        yield FetchingProcess(process)
    finally:
        process.stdin.close()
        await process.wait()


async def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        while True:  # until it is gone, and its lock with it
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.001)


def _throttled(contents: list[bytes]) -> servers.Behaviour:
    async def behave(request: Request, reply: Reply) -> None:
        content = contents[int(request.target[1:])]
        await servers.slow_body(content, bytes_per_second=1_000_000)(request, reply)

    return behave


def _has_note(directory: Path, blob: BlobRef) -> bool:
    return (directory / "partial" / f"{download_name(blob)}.json").exists()


def _num_asked_for(server: MisbehavingServer) -> int:
    spans = [request.span(SIZE) or (0, SIZE) for request in server.requests]
    return sum(end - start for start, end in spans)


async def test_kill_9_at_random_moments_never_publishes_a_wrong_file(
    tmp_path: Path, fetching: FetchingProcess
) -> None:
    contents = [random_bytes(SIZE, seed=i) for i in range(NUM_KILLS + 1)]
    blobs = tmp_path / "blobs"
    moments = random.Random(0)
    num_published = 0
    async with MisbehavingServer(_throttled(contents), tls=False) as server:

        def blob() -> BlobRef:
            return BlobRef(server.url(f"/{num_published}"), checksum_of(contents[num_published]), SIZE)

        for _ in range(NUM_KILLS):
            is_resumable = _has_note(tmp_path, blob())
            server.requests.clear()
            pid = await fetching.start(tmp_path, blob())
            await asyncio.sleep(moments.uniform(0, 0.2))
            await _kill(pid)
            if is_resumable:  # whether it has begun or not
                assert _num_asked_for(server) < SIZE
            names = [path.name for path in blobs.glob("*")]
            assert [checksum_of((blobs / name).read_bytes()) for name in names] == names
            assert {path.name for path in (tmp_path / "urls").glob("*.urls")} >= {
                f"{name}.urls" for name in names
            }
            num_published = len(names)
        await fetching.start(tmp_path, blob())
        assert await fetching.outcomes() == [blob().checksum]
    async with delivery(tmp_path) as d:
        assert len(d.files()) == num_published + 1


async def test_after_a_crash_the_download_is_resumed_to_its_end(
    tmp_path: Path, fetching: FetchingProcess
) -> None:
    content = random_bytes(SIZE)
    async with MisbehavingServer(_throttled([content]), tls=False) as server:
        blob = BlobRef(server.url("/0"), checksum_of(content), SIZE)
        pid = await fetching.start(tmp_path, blob)
        while not _has_note(tmp_path, blob):
            await asyncio.sleep(0.005)
        await _kill(pid)
        server.requests.clear()
        await fetching.start(tmp_path, blob)
        assert await fetching.outcomes() == [blob.checksum]
        assert _num_asked_for(server) <= SIZE - (1 << 14)


# -- a full disk -----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    with mounted(tmp_path / "disk", "size=1m") as folder:
        yield folder


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    """A file system that takes about forty files and folders."""
    with mounted(tmp_path / "disk", "size=64m,nr_inodes=40") as folder:
        yield folder


async def test_a_full_disk_is_insufficient_storage_and_the_next_request_works(small_disk: Path) -> None:
    large = random_bytes(2 << 20)
    async with delivery(small_disk) as d, MisbehavingServer(servers.honest(large)) as server:
        for size in (len(large), None):
            blob = BlobRef(server.url(), checksum_of(large), size)
            failure = await d.refused(blob, max_bytes=1 << 30)
            assert (failure.full_code, failure.fault) == ("insufficient-storage", "service")
        server.behave = servers.chunked(*(large[i : i + 65536] for i in range(0, len(large), 65536)))
        failure = await d.refused(BlobRef(server.url()), max_bytes=1 << 30)
        assert failure.full_code == "insufficient-storage"
        await d.assert_still_works()


async def test_on_a_small_disk_unused_files_are_evicted(small_disk: Path) -> None:
    async with delivery(small_disk) as d:
        for seed in range(5):
            content = random_bytes(400_000, seed=seed)
            async with (
                d.stored(content) as cached,
                MisbehavingServer(servers.honest(content[::-1])) as server,
            ):
                reversed_ = await d.fetch(BlobRef(server.url(), checksum_of(content[::-1])))
                assert cached.path.exists()
                assert not reversed_.was_cached


async def test_a_limit_on_the_size_of_files_is_insufficient_storage(
    tmp_path: Path, fetching: FetchingProcess
) -> None:
    large, small = random_bytes(200_000), random_bytes(50_000)
    async with MisbehavingServer(_throttled([large, small]), tls=False) as server:
        blobs = [
            BlobRef(server.url(f"/{i}"), checksum_of(content), len(content))
            for i, content in enumerate((large, small))
        ]
        await fetching.start(tmp_path, *blobs, max_file_bytes=100_000)
        assert await fetching.outcomes() == ["insufficient-storage", checksum_of(small)]


async def test_without_inodes_small_blobs_are_evicted_and_large_ones_stay(few_inodes: Path) -> None:
    large = random_bytes(2 << 20)
    async with delivery(few_inodes) as d, MisbehavingServer(servers.honest(large)) as server:
        blob = BlobRef(server.url(), checksum_of(large), len(large))
        await d.fetch(blob, max_bytes=1 << 30)
        for seed in range(40):
            async with d.stored(random_bytes(100, seed=seed)), d.cache.hold(b"inline"):
                pass
        assert (await d.fetch(blob, max_bytes=1 << 30)).was_cached
        assert d.cache.trouble is None


async def _until_trouble(cache: BlobCache, expected: bool) -> None:
    while (cache.trouble is not None) is not expected:
        await asyncio.sleep(0.01)


async def test_a_read_only_disk_is_reported_until_it_works_again(small_disk: Path) -> None:
    async with delivery(small_disk, retry_seconds=0.05) as d:
        await d.fetch()
        mirror = d.blob(path="/mirror")
        await asyncio.to_thread(remount, small_disk, "ro")
        failure = await d.refused(mirror)
        assert (failure.full_code, failure.fault, failure.retryable) == ("out-of-resources", "service", True)
        with pytest.raises(ServiceTrouble):
            async with d.cache.hold(b"inline"):
                pass
        assert (await d.fetch()).was_cached  # what is here can still be read
        await _until_trouble(d.cache, True)
        await asyncio.to_thread(remount, small_disk, "rw")
        await _until_trouble(d.cache, False)
        assert not (await d.fetch(mirror)).was_cached


async def test_a_folder_that_was_deleted_is_a_service_failure(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with delivery(folder, retry_seconds=0.05) as d:
        blob = d.blob()
        await d.fetch(blob)
        shutil.rmtree(folder)
        failure = await d.refused(blob)
        assert (failure.full_code, failure.fault, failure.retryable) == ("out-of-resources", "service", True)
        await _until_trouble(d.cache, True)


@contextlib.contextmanager
def _mapping(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has mapped the file and closed it, as a worker does with weights."""
    code = (
        "import mmap, sys; file = open(sys.argv[1], 'rb'); mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ);"
        "file.close(); print(flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


async def test_a_file_that_a_worker_has_mapped_is_not_deleted_in_vain(small_disk: Path) -> None:
    mapped, idle = random_bytes(400_000), random_bytes(400_000, seed=1)
    with contextlib.ExitStack() as workers:
        async with delivery(small_disk) as d:
            async with d.stored(mapped) as cached:
                worker = workers.enter_context(_mapping(cached.path))
            async with d.stored(idle):
                pass
            await d.fetch()  # the mapped one was used longest ago, and deleting it would free nothing
            assert d.files() == sorted([checksum_of(mapped), checksum_of(CONTENT)])
            async with d.cache.hold(bytes(300_000)):
                with pytest.raises(ServiceTrouble):
                    async with d.cache.hold(bytes(400_000)):
                        pass
            assert checksum_of(mapped) in d.files()
            worker.kill()
            await asyncio.to_thread(worker.wait)
            async with d.stored(idle), d.cache.hold(bytes(400_000)):
                assert checksum_of(mapped) not in d.files()
