"""The actor of a device: real worker processes behind it, and no Ray."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.recipe import small_weights_bytes
from tests.workers.cluster.nodes import MISBEHAVING, checksum_of
from tests.workers.processes.pools import is_alive, job, until
from workers.cluster.relay_actor import (
    CLOSED,
    CUT_OFF,
    DISK_ERROR,
    FRAMES,
    NOT_AS_PUBLISHED,
    STOPPED,
    WRITTEN,
    RelayActor,
)
from workers.message_codec import Decoder, encode
from workers.messages import BatchAdvanced, BatchDone, Configure, Evaluate, Finished, Ready
from workers.processes.worker_process import ENTRY_MODULE
from workers.types import EvalJob, WorkerConfig
from workers.v1 import ArchitectureConfig

CONFIG = WorkerConfig("cpu", num_threads=1)


@pytest.fixture
def raylet() -> Iterator[subprocess.Popen[bytes]]:
    """The process that must run for the node to be of use."""
    started = subprocess.Popen(["sleep", "600"])
    yield started
    started.kill()
    started.wait()


@pytest_asyncio.fixture
async def actor(tmp_path: Path, raylet: subprocess.Popen[bytes]) -> AsyncIterator[RelayActor]:
    """An actor whose head may be silent for four seconds: a busy machine stops both for a second or two."""
    started = RelayActor(
        str(tmp_path / "node"),
        1 << 20,
        MISBEHAVING,
        silence_seconds=0.5,
        fence_seconds=4.0,
        raylet_pid=raylet.pid,
    )
    yield started
    for session in range(1, 5):
        await started.end(session, 0.0)


async def spawn(actor: RelayActor, session: int) -> int:
    """A worker process of this session that was told how to work."""
    pid = await actor.spawn(session, encode(CONFIG))
    await actor.write(session, encode(Configure(CONFIG, 0.1)))
    return pid


async def messages_until(actor: RelayActor, session: int, kind: type) -> list[object]:
    """What the worker sends, up to the first message of this kind."""
    decoder, received = Decoder(), list[object]()
    while not any(isinstance(each, kind) for each in received):
        answer = await actor.read(session, 5.0)
        assert answer[:1] == FRAMES
        received += decoder.feed(answer[1:])
    return received


async def test_frames_are_relayed_both_ways(actor: RelayActor, tmp_path: Path) -> None:
    await spawn(actor, 1)
    await messages_until(actor, 1, Ready)
    await actor.write(1, encode(Evaluate(7, job("good", tmp_path, 3), 0, 3)))
    received = await messages_until(actor, 1, Finished)
    assert [each.score.index for each in received if isinstance(each, BatchDone)] == [0, 1, 2]


async def test_how_far_a_slow_batch_is_is_relayed(actor: RelayActor, tmp_path: Path) -> None:
    await spawn(actor, 1)
    await messages_until(actor, 1, Ready)
    await actor.write(1, encode(Evaluate(7, job("says-how-far-it-is", tmp_path, 1), 0, 1)))
    received = await messages_until(actor, 1, Finished)
    fractions = [each.fraction for each in received if isinstance(each, BatchAdvanced)]
    assert fractions
    assert fractions == sorted(fractions)


@pytest.mark.slow
async def test_another_architecture_travels_to_the_worker(tmp_path: Path) -> None:
    """30 sequences of 64 tokens are one batch of the network's, and three of this architecture."""
    architecture = replace(ArchitectureConfig.small(), max_seq_len=64, batch_size=10)
    config = WorkerConfig("cpu", num_threads=1, architecture=architecture.to_json())
    (tmp_path / "weights").write_bytes(small_weights_bytes())
    (tmp_path / "data").write_bytes(bytes(30 * 64))
    actor = RelayActor(
        str(tmp_path / "node"), 1 << 20, ENTRY_MODULE, silence_seconds=60.0, fence_seconds=60.0
    )
    try:
        await actor.spawn(1, encode(config))
        await actor.write(1, encode(Configure(config, 0.1)))
        await messages_until(actor, 1, Ready)
        asked = EvalJob(str(tmp_path / "weights"), "w", str(tmp_path / "data"), 30 * 64, seed=0)
        await actor.write(1, encode(Evaluate(7, asked, 0, 3)))
        received = await messages_until(actor, 1, Finished)
    finally:
        await actor.end(1, 0.0)
    assert [each.score.index for each in received if isinstance(each, BatchDone)] == [0, 1, 2]


async def test_the_exit_status_is_relayed(actor: RelayActor) -> None:
    pid = await spawn(actor, 1)
    os.kill(pid, signal.SIGKILL)
    while (await actor.read(1, 5.0))[:1] != CLOSED:
        pass
    assert await actor.end(1, 1.0) == b"-9 0 0"


async def test_a_process_that_was_stopped_is_told_apart_from_one_that_has_nothing_to_say(
    actor: RelayActor,
) -> None:
    pid = await spawn(actor, 1)
    await messages_until(actor, 1, Ready)
    os.kill(pid, signal.SIGSTOP)
    while (answer := await actor.read(1, 0.5)) != STOPPED:
        assert answer[:1] == FRAMES  # what it sent before
    os.kill(pid, signal.SIGCONT)
    assert await actor.read(1, 5.0) != STOPPED


async def test_a_node_whose_raylet_is_stopped_is_cut_off_until_it_goes_on(
    actor: RelayActor, raylet: subprocess.Popen[bytes]
) -> None:
    await spawn(actor, 1)
    await messages_until(actor, 1, Ready)
    raylet.send_signal(signal.SIGSTOP)
    while (answer := await actor.read(1, 0.1)) != CUT_OFF:
        assert answer[:1] == FRAMES
    raylet.send_signal(signal.SIGCONT)
    while (answer := await actor.read(1, 0.1)) == CUT_OFF:
        pass
    assert answer[:1] == FRAMES


async def test_an_end_says_that_a_signal_of_ours_did_it(actor: RelayActor) -> None:
    pid = await spawn(actor, 1)
    await messages_until(actor, 1, Ready)
    assert await actor.end(1, 0.0) == b"-9 1 0"
    assert not is_alive(pid)


async def test_a_new_session_ends_the_process_of_the_one_before_and_drops_what_is_for_it(
    actor: RelayActor, tmp_path: Path
) -> None:
    first = await spawn(actor, 1)
    second = await spawn(actor, 2)
    assert not is_alive(first)
    assert await actor.read(1, 5.0) == CLOSED
    await actor.write(1, b"no frame at all, which would end the worker that received it")
    await messages_until(actor, 2, Ready)
    assert is_alive(second)
    assert await actor.end(1, 0.0) == b"-9 1 0"
    assert is_alive(second)


@pytest.mark.parametrize("session", [1, 2])
async def test_a_session_number_is_used_once(actor: RelayActor, session: int) -> None:
    pid = await spawn(actor, 2)
    assert await actor.spawn(session, encode(CONFIG)) < 0
    assert is_alive(pid)


async def test_a_head_that_is_silent_for_too_long_loses_its_worker(actor: RelayActor) -> None:
    pid = await spawn(actor, 1)
    await messages_until(actor, 1, Ready)
    await until(lambda: not is_alive(pid), seconds=30.0)
    while (answer := await actor.read(1, 0.0)) != CLOSED:
        assert answer[:1] == FRAMES  # what it sent before


async def test_a_head_that_only_listens_keeps_its_worker(actor: RelayActor) -> None:
    pid = await spawn(actor, 1)
    for _ in range(10):
        await actor.read(1, 0.3)
        await asyncio.sleep(0.2)
    assert is_alive(pid)


async def test_a_worker_that_sends_more_than_is_fetched_waits(actor: RelayActor) -> None:
    config = WorkerConfig("cpu", num_threads=1)
    await actor.spawn(1, encode(config))
    await actor.write(1, encode(Configure(config, 0.00001)))
    await asyncio.sleep(0.8)
    assert len(actor._buffer._bytes) < (4 << 20)
    assert len(await actor.read(1, 1.0)) <= (256 << 10) + 1


async def test_blocks_wait_for_their_turn(actor: RelayActor) -> None:
    content = b"abcdef"
    checksum = checksum_of(content)
    assert await actor.receive(checksum, 6, 0, b"ab") == WRITTEN
    last = asyncio.create_task(actor.receive(checksum, 6, 4, b"ef"))
    await asyncio.sleep(0.05)
    assert not last.done()
    assert await actor.receive(checksum, 6, 2, b"cd") == WRITTEN
    assert await last == WRITTEN
    assert await actor.missing(checksum, 6, "", 0) == 0


async def test_a_block_of_a_file_that_failed_does_not_wait(actor: RelayActor) -> None:
    checksum = checksum_of(b"right")
    assert await actor.receive(checksum, 5, 0, b"wrong") == NOT_AS_PUBLISHED
    assert await actor.receive(checksum, 5, 3, b"xx") == DISK_ERROR
    assert await actor.receive("../escape", 5, 0, b"right") == DISK_ERROR
