"""The checksum of a file does not depend on the order its bytes came in."""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.checksum import checksum_of
from service.download import ordered_hash
from service.download.file_threads import FileThreads
from service.download.partial_file import Origin, PartialFile
from tests.misbehaving_server import random_bytes

T = TypeVar("T")


class NoLimit:
    """Room for everything."""

    async def expect(self, num_bytes: int) -> None: ...

    async def take(self, num_bytes: int) -> None: ...

    async def with_room(self, work: Callable[[], Awaitable[T]]) -> T:
        return await work()


def _pieces(content: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    edges = sorted({0, len(content), *cuts})
    return [(start, content[start:end]) for start, end in itertools.pairwise(edges)]


async def _write(partial: PartialFile, offset: int, data: bytes) -> None:
    buffer = partial.buffers.take()
    buffer[: len(data)] = data
    await partial.write(offset, len(data), buffer)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5000), st.lists(st.integers(0, 5000), max_size=12), st.randoms(), st.integers(0, 12))
def test_any_order_of_writes_and_a_restart_give_the_same_checksum(
    tmp_path: Path, size: int, cuts: list[int], order: random.Random, num_before: int
) -> None:
    content = random_bytes(size)
    pieces = _pieces(content, [cut for cut in cuts if cut < size])
    order.shuffle(pieces)

    async def run() -> str:
        with closing(FileThreads()) as threads:
            for some, is_last in ((pieces[:num_before], False), (pieces[num_before:], True)):
                partial = PartialFile(
                    tmp_path / "a.part",
                    NoLimit(),
                    threads,
                    is_resumable=True,
                    checkpoint_bytes=1,
                    write_bytes=5000,
                )
                await partial.open()
                assert partial.num_done == (
                    sum(len(data) for _, data in pieces[:num_before]) if is_last else 0
                )
                partial.origin = Origin(size)
                await partial.reserve(size)
                await asyncio.gather(*(_write(partial, offset, data) for offset, data in some))
                if is_last:
                    assert partial.missing(size) == []
                    checksum = await partial.checksum(size)
                await partial.close(keep=not is_last)
        return checksum

    assert asyncio.run(run()) == checksum_of(content)
    assert list(tmp_path.iterdir()) == []


async def test_whoever_writes_faster_than_can_be_hashed_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ordered_hash, "_MAX_KEPT_BYTES", 3000)
    content = random_bytes(200_000)
    most = 0
    with closing(FileThreads()) as threads:
        partial = PartialFile(
            tmp_path / "a.part",
            NoLimit(),
            threads,
            is_resumable=False,
            checkpoint_bytes=1 << 20,
            write_bytes=1000,
        )
        await partial.open()
        for start in range(0, len(content), 1000):
            await _write(partial, start, content[start : start + 1000])
            most = max(most, partial.num_unhashed)
        assert await partial.checksum(len(content)) == checksum_of(content)
        await partial.close(keep=False)
    assert most <= 3000


async def test_a_file_that_became_shorter_is_an_error_and_no_wrong_checksum(tmp_path: Path) -> None:
    with closing(FileThreads()) as threads:
        partial = PartialFile(
            tmp_path / "a.part",
            NoLimit(),
            threads,
            is_resumable=False,
            checkpoint_bytes=1 << 20,
            write_bytes=1000,
        )
        await partial.open()
        await _write(partial, 1000, bytes(1000))
        (tmp_path / "a.part").write_bytes(b"")
        await _write(partial, 0, bytes(1000))
        with pytest.raises(OSError, match="shorter"):
            await partial.checksum(2000)
        await partial.close(keep=False)
