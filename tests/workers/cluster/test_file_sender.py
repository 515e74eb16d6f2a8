"""Files on their way to nodes: each node once, each block shared, and never more than a few blocks."""

import asyncio
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.cluster.nodes import InProcessCluster, checksum_of, file_to_send
from workers.cluster import file_sender
from workers.cluster.cluster_errors import ActorLost, Undeliverable
from workers.cluster.device_actor import DeviceActor
from workers.cluster.file_sender import MAX_BLOCKS, FileSender


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1 KiB."""
    monkeypatch.setattr(file_sender, "BLOCK_BYTES", 1 << 10)


async def started(cluster: InProcessCluster, *nodes: str) -> list[DeviceActor]:
    """An actor on each of these nodes."""
    actors = [cluster.device(node, index) for index, node in enumerate(nodes)]
    for actor in actors:
        await actor.start(None)
    return actors


def nothing() -> None:
    """For who does not ask how far it is."""


async def test_a_file_comes_whole_and_its_blocks_are_reported(tmp_path: Path) -> None:
    cluster = InProcessCluster(tmp_path)
    (actor,) = await started(cluster, "a")
    content = bytes(range(256)) * 21
    file, blocks = file_to_send(tmp_path, content), list[int]()
    await FileSender(cluster).bring(actor, file, None, lambda: blocks.append(1))  # type: ignore[arg-type]
    assert (cluster.folder_of("a") / file.checksum).read_bytes() == content
    assert len(blocks) == 6


async def test_a_node_is_sent_a_file_once_though_all_its_devices_ask(tmp_path: Path) -> None:
    cluster = InProcessCluster(tmp_path)
    actors = await started(cluster, "a", "a", "a")
    sender, file = FileSender(cluster), file_to_send(tmp_path, bytes(8 << 10))  # type: ignore[arg-type]
    await asyncio.gather(*(sender.bring(actor, file, None, nothing) for actor in actors))
    assert (cluster.num_put, sender.bytes_sent) == (8, 8 << 10)
    await sender.bring(actors[0], file, None, nothing)
    assert cluster.num_put == 8


async def test_a_node_that_lost_a_file_is_sent_it_again(tmp_path: Path) -> None:
    cluster = InProcessCluster(tmp_path)
    (actor,) = await started(cluster, "a")
    sender, file = FileSender(cluster), file_to_send(tmp_path, bytes(2 << 10))  # type: ignore[arg-type]
    await sender.bring(actor, file, None, nothing)
    there = cluster.folder_of("a") / file.checksum
    there.unlink()
    await sender.bring(actor, file, None, nothing)
    assert there.read_bytes() == bytes(2 << 10)
    assert sender.bytes_sent == 2 * (2 << 10)


async def test_nodes_share_blocks_and_few_exist_at_a_time(tmp_path: Path) -> None:
    cluster = InProcessCluster(tmp_path)
    actors = await started(cluster, "a", "b", "c", "d")
    sender = FileSender(cluster)  # type: ignore[arg-type]
    files = [file_to_send(tmp_path, bytes([n]) * (40 << 10), str(n)) for n in range(3)]
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sum(len(blocks._alive) for blocks in sender._blocks.values()))
            await asyncio.sleep(0)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(sender.bring(actor, file, None, nothing) for actor in actors for file in files))
    watching.cancel()
    assert sender.bytes_sent == 4 * 3 * (40 << 10)
    assert 3 * 40 <= cluster.num_put < 4 * 3 * 40
    assert most <= MAX_BLOCKS + 4 * 3 * 2  # those that wait for room are no objects yet
    assert sender._room._value == MAX_BLOCKS
    assert not sender._blocks
    assert not sender._transfers


async def test_a_full_disk_is_said_to_be_one(tmp_path: Path) -> None:
    cluster = InProcessCluster(tmp_path, max_bytes=1 << 10)
    (actor,) = await started(cluster, "a")
    file = file_to_send(tmp_path, bytes(2 << 10))
    with pytest.raises(Undeliverable, match="full") as raised:
        await FileSender(cluster).bring(actor, file, None, nothing)  # type: ignore[arg-type]
    assert raised.value.disk_is_full


async def test_other_bytes_than_the_checksum_says(tmp_path: Path) -> None:
    cluster = InProcessCluster(tmp_path)
    (actor,) = await started(cluster, "a")
    file = replace(file_to_send(tmp_path, b"wrong"), checksum=checksum_of(b"right"))
    sender = FileSender(cluster)  # type: ignore[arg-type]
    with pytest.raises(Undeliverable, match="checksum"):
        await sender.bring(actor, file, None, nothing)
    assert not any(cluster.folder_of("a").iterdir())


async def test_a_file_that_the_head_cannot_read(tmp_path: Path) -> None:
    cluster = InProcessCluster(tmp_path)
    (actor,) = await started(cluster, "a")
    file = replace(file_to_send(tmp_path, b"right"), path=str(tmp_path / "none"))
    sender = FileSender(cluster)  # type: ignore[arg-type]
    with pytest.raises(Undeliverable, match="head cannot read"):
        await sender.bring(actor, file, None, nothing)
    assert sender._room._value == MAX_BLOCKS


async def test_a_block_that_ray_does_not_take_is_not_waited_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, thawed = InProcessCluster(tmp_path), threading.Event()
    (actor,) = await started(cluster, "a")
    file = file_to_send(tmp_path, b"right")
    sender = FileSender(cluster)  # type: ignore[arg-type]
    with monkeypatch.context() as frozen:
        frozen.setattr(file_sender, "_PUT_SECONDS", 0.1)
        frozen.setattr(cluster, "put", lambda block: thawed.wait())
        with pytest.raises(Undeliverable, match="raylet"):
            await sender.bring(actor, file, None, nothing)
    thawed.set()
    assert sender._room._value == MAX_BLOCKS
    await sender.bring(actor, file, None, nothing)


async def test_another_device_of_the_node_goes_on_when_the_sending_one_is_lost(tmp_path: Path) -> None:
    cluster = InProcessCluster(tmp_path)
    first, second = await started(cluster, "a", "a")
    file = file_to_send(tmp_path, bytes(50 << 10))
    sender = FileSender(cluster)  # type: ignore[arg-type]
    lost = asyncio.create_task(sender.bring(first, file, None, lambda: first.end()))
    await asyncio.sleep(0)
    kept = asyncio.create_task(sender.bring(second, file, None, nothing))
    with pytest.raises(ActorLost):
        await lost
    await kept
    assert (cluster.folder_of("a") / file.checksum).stat().st_size == 50 << 10


async def test_who_gives_up_stops_the_transfer_unless_another_waits(tmp_path: Path) -> None:
    cluster = InProcessCluster(tmp_path)
    first, second = await started(cluster, "a", "a")
    file = file_to_send(tmp_path, bytes(50 << 10))
    sender = FileSender(cluster)  # type: ignore[arg-type]
    gives_up = asyncio.create_task(sender.bring(first, file, None, nothing))
    await asyncio.sleep(0.01)
    waits = asyncio.create_task(sender.bring(second, file, None, nothing))
    await asyncio.sleep(0.01)
    gives_up.cancel()
    await waits
    alone = file_to_send(tmp_path, bytes(60 << 10), "other")
    gives_up = asyncio.create_task(sender.bring(first, alone, None, nothing))
    await asyncio.sleep(0.01)
    gives_up.cancel()
    await asyncio.gather(gives_up, return_exceptions=True)
    await asyncio.sleep(0.1)
    assert sender._room._value == MAX_BLOCKS
    assert not sender._transfers
