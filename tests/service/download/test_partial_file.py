"""A file whose bytes are written in any order: its checksum, and what another attempt finds of it."""

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.checksum import checksum_of
from service.download.file_threads import FileThreads
from service.download.partial_file import PartialFile
from service.download.partial_note import Origin
from tests.misbehaving_server import random_bytes

T = TypeVar("T")


class Unlimited:
    """Space for everything."""

    async def expect(self, num_bytes: int) -> None: ...

    async def take(self, num_bytes: int) -> None: ...

    async def retry_when_full(self, work: Callable[[], Awaitable[T]]) -> T:
        return await work()

    def release(self) -> None: ...


@contextlib.asynccontextmanager
async def _opened(path: Path, *, keep: bool = False) -> AsyncIterator[PartialFile]:
    with contextlib.closing(FileThreads()) as threads:
        partial = PartialFile(
            path, Unlimited(), threads.pool, is_resumable=True, sync_bytes=1, allocation_bytes=5000
        )
        await partial.open()
        try:
            yield partial
        finally:
            await partial.close(keep=keep)


def _pieces(content: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    edges = sorted({0, len(content), *cuts})
    return [(start, content[start:end]) for start, end in itertools.pairwise(edges)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5000), st.lists(st.integers(0, 5000), max_size=12), st.randoms(), st.integers(0, 12))
def test_any_order_of_writes_and_a_restart_give_the_same_checksum(
    tmp_path: Path, size: int, cuts: list[int], order: random.Random, num_before: int
) -> None:
    content = random_bytes(size)
    pieces = _pieces(content, [cut for cut in cuts if cut < size])
    order.shuffle(pieces)
    before, after = pieces[:num_before], pieces[num_before:]

    async def run() -> str:
        async with _opened(tmp_path / "a.part", keep=True) as partial:
            partial.origin = Origin(size)
            for offset, data in before:
                await partial.write(offset, memoryview(data))
        async with _opened(tmp_path / "a.part") as partial:
            assert partial.num_written == sum(len(data) for _, data in before)
            await partial.expect(size)
            await asyncio.gather(*(partial.write(offset, memoryview(data)) for offset, data in after))
            assert partial.missing(size) == []
            return await partial.checksum(size)

    assert asyncio.run(run()) == checksum_of(content)
    assert list(tmp_path.iterdir()) == []


async def test_after_a_reset_no_earlier_byte_is_in_the_checksum(tmp_path: Path) -> None:
    content = random_bytes(3000)
    async with _opened(tmp_path / "a.part") as partial:
        await partial.write(0, memoryview(bytes(2000)))
        await partial.reset()
        await partial.write(1000, memoryview(content)[1000:])
        await partial.write(0, memoryview(content)[:1000])
        assert await partial.checksum(3000) == checksum_of(content)


async def test_a_file_that_became_shorter_is_an_error_and_no_wrong_checksum(tmp_path: Path) -> None:
    async with _opened(tmp_path / "a.part") as partial:
        await partial.write(1000, memoryview(bytes(1000)))
        (tmp_path / "a.part").write_bytes(b"")
        await partial.write(0, memoryview(bytes(1000)))
        with pytest.raises(OSError, match="shorter"):
            await partial.checksum(2000)


async def test_a_checksum_of_bytes_that_are_missing_is_refused(tmp_path: Path) -> None:
    async with _opened(tmp_path / "a.part") as partial:
        await partial.write(1000, memoryview(bytes(1000)))
        with pytest.raises(RuntimeError):
            await partial.checksum(2000)
