"""A pool whose devices come and go, whose machines lack files, or are lost with all that runs on them."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from tests.workers.processes.pools import (
    MISBEHAVING,
    SHORT_TIMEOUTS,
    cpus,
    is_alive,
    job,
    misbehaving_pool,
    pids,
    right_cross_entropy,
    until,
    until_whole,
)
from workers.errors import NoWorker, OutOfMemory, StorageFull, WorkerCrashed
from workers.messages import Evaluate, FromWorker, ToWorker
from workers.processes.process_handle import PipeClosed, ProcessHandle, Undelivered
from workers.processes.process_pool import ProcessPool
from workers.processes.supervisor import Place, Supervisor
from workers.processes.worker_process import WorkerProcess
from workers.types import WorkerConfig

pytestmark = pytest.mark.slow

CPU = WorkerConfig("cpu", num_threads=1)
spawn = partial(WorkerProcess.spawn, entry_module=MISBEHAVING)


class OnAMachine:
    """A real worker process on a machine that fails as a test says: the machine is what is not at hand here."""

    def __init__(self, process: WorkerProcess, machine: "Machine") -> None:
        self._process = process
        self._machine = machine
        self._undelivered: list[Undelivered] = []
        self.pid = process.pid

    @property
    def was_ended_here(self) -> bool:
        return self._process.was_ended_here

    @property
    def is_stopped(self) -> bool:
        return self._process.is_stopped

    @property
    def is_stuck(self) -> bool:
        return self._machine.is_stuck

    def send(self, message: ToWorker) -> None:
        if isinstance(message, Evaluate) and self._machine.lacks_room:
            self._undelivered.append(Undelivered(message.task_id, StorageFull("the node's disk is full")))
        else:
            self._process.send(message)

    async def receive(self, timeout_seconds: float) -> FromWorker | PipeClosed | Undelivered | None:
        if self._undelivered:
            return self._undelivered.pop()
        if self._machine.is_lost:
            return PipeClosed("was lost with its machine")
        return await self._process.receive(timeout_seconds)

    async def end(self, term_grace_seconds: float) -> int:
        return await self._process.end(term_grace_seconds)

    async def kill(self) -> int:
        return await self._process.kill()


class Machine:
    """What may be wrong with it."""

    def __init__(self, name: str) -> None:
        self.place = Place(node=name)
        self.is_lost = self.is_stuck = self.lacks_room = False
        self.num_spawned = 0

    async def spawn(self, config: WorkerConfig) -> ProcessHandle:
        self.num_spawned += 1
        if self.is_lost:
            raise OSError(None, "the node does not answer")
        return OnAMachine(await spawn(config), self)

    def join(self, pool: ProcessPool) -> Supervisor:
        return pool.add_worker(CPU, self.spawn, self.place)


@pytest_asyncio.fixture
async def shared() -> AsyncIterator[ProcessPool]:
    """A pool of one worker on this machine, to which tests add others."""
    async with misbehaving_pool(cpus(1)) as pool:
        yield pool


# -- coming and going


async def test_a_worker_that_is_added_helps_with_what_runs(tmp_path: Path) -> None:
    pool = ProcessPool((), SHORT_TIMEOUTS, may_grow=True)
    Machine("a").join(pool)
    await pool.start()
    running = asyncio.create_task(pool.evaluate(job("slow", tmp_path, 20)))
    await until(lambda: pool.status()[0].busy)
    Machine("b").join(pool)
    await until(lambda: pool.status()[-1].busy)
    result = await running
    assert result.cross_entropy == right_cross_entropy(20)
    assert {task.node for task in result.tasks} == {"a", "b"}
    assert [status.node for status in pool.status()] == ["a", "b"]
    await pool.close()


async def test_what_a_removed_worker_has_in_hand_goes_to_the_others(
    shared: ProcessPool, tmp_path: Path
) -> None:
    machine = Machine("b")
    worker = machine.join(shared)
    await until_whole(shared)
    running = asyncio.create_task(shared.evaluate(job("good", tmp_path, 60)))
    await until(lambda: all(status.busy for status in shared.status()))
    pid = pids(shared)[1]
    await shared.remove_worker(worker, "node b left the cluster")
    assert not is_alive(pid)
    assert (await running).cross_entropy == right_cross_entropy(60)
    assert len(shared.status()) == 1


async def test_when_the_last_worker_leaves_work_fails_with_the_reason(tmp_path: Path) -> None:
    pool = ProcessPool((), SHORT_TIMEOUTS)
    worker = Machine("b").join(pool)
    await pool.start()
    running = asyncio.create_task(pool.evaluate(job("good", tmp_path, 1000)))
    await until(lambda: pool.status()[0].busy)
    await pool.remove_worker(worker, "node b left the cluster")
    with pytest.raises(NoWorker, match="node b left"):
        await running
    with pytest.raises(NoWorker):
        await pool.evaluate(job("good", tmp_path))
    Machine("c").join(pool)
    assert (await pool.evaluate(job("good", tmp_path))).cross_entropy == right_cross_entropy()
    await pool.close()


async def test_a_pool_without_a_device_does_not_start() -> None:
    with pytest.raises(NoWorker, match="no device"):
        await ProcessPool(()).start()


async def test_machines_with_one_build_of_torch_alone_share_an_evaluation(tmp_path: Path) -> None:
    pool = ProcessPool((), SHORT_TIMEOUTS)
    for name, build in (("a", "2.13.0+cpu"), ("b", "2.13.0+cpu"), ("c", "2.13.0+cu130")):
        pool.add_worker(CPU, spawn, Place(name, "", build))
    await pool.start()
    running = asyncio.create_task(pool.evaluate(job("slow", tmp_path, 30)))
    await until(lambda: sum(status.busy for status in pool.status()) == 2)
    await asyncio.sleep(0.2)
    kinds = {status.node for status in pool.status() if status.busy}
    assert kinds == {"a", "b"}
    running.cancel()
    await pool.close()


# -- lost machines


async def test_a_lost_machine_is_not_held_against_the_evaluation(shared: ProcessPool, tmp_path: Path) -> None:
    machines = [Machine(name) for name in ("b", "c", "d")]
    for machine in machines:
        machine.join(shared)
    await until_whole(shared)
    running = asyncio.create_task(shared.evaluate(job("slow", tmp_path, 16)))
    await until(lambda: all(status.busy for status in shared.status()))
    for machine in machines:  # three workers: more than an evaluation may lose otherwise
        machine.is_lost = True
    assert (await running).cross_entropy == right_cross_entropy(16)


async def test_an_evaluation_that_loses_one_machine_after_the_other_is_given_up(tmp_path: Path) -> None:
    pool = ProcessPool((), SHORT_TIMEOUTS)
    machines = [Machine(name) for name in "abcde"]
    machines[0].join(pool)
    await pool.start()
    running = asyncio.create_task(pool.evaluate(job("slow", tmp_path, 1000)))
    for machine, following in itertools.pairwise(machines):
        await until(lambda: pool.status()[-1].busy)
        machine.is_lost = True
        if not running.done():
            following.join(pool)
        await asyncio.sleep(0.3)
    with pytest.raises(WorkerCrashed):
        await running
    await pool.close()


async def test_a_process_that_cannot_be_ended_takes_its_device_with_it(
    shared: ProcessPool, tmp_path: Path
) -> None:
    machine = Machine("b")
    machine.join(shared)
    await until_whole(shared)
    machine.is_stuck = True
    running = asyncio.create_task(shared.evaluate(job("freezes-once", tmp_path)))
    await running
    if not shared.status()[1].trouble:  # the other worker froze: this one is ended now
        machine.is_lost = True
    await until(lambda: "driver hangs" in shared.status()[1].trouble)
    await asyncio.sleep(0.5)
    assert machine.num_spawned == 1
    assert not shared.status()[1].ready


# -- files that do not arrive


async def test_another_machine_takes_what_one_has_no_room_for(shared: ProcessPool, tmp_path: Path) -> None:
    machine = Machine("b")
    machine.lacks_room = True
    machine.join(shared)
    await until_whole(shared)
    for _ in range(3):
        assert (await shared.evaluate(job("good", tmp_path, 20))).cross_entropy == right_cross_entropy(20)
    assert "disk is full" in shared.status()[1].trouble


async def test_when_no_machine_has_room_the_caller_is_told_so(tmp_path: Path) -> None:
    pool = ProcessPool((), SHORT_TIMEOUTS)
    machines = [Machine("a"), Machine("b")]
    for machine in machines:
        machine.lacks_room = True
        machine.join(pool)
    await pool.start()
    with pytest.raises(StorageFull):
        await pool.evaluate(job("good", tmp_path))
    machines[1].lacks_room = False
    assert (await pool.evaluate(job("good", tmp_path))).cross_entropy == right_cross_entropy()
    await pool.close()


# -- too little memory


def with_memory(*sizes: int) -> ProcessPool:
    """A pool of devices of two kinds, of so many bytes each."""
    kinds = ("cuda:0", "cpu")
    configs = [WorkerConfig(kinds[n % 2], memory_budget_bytes=size) for n, size in enumerate(sizes)]
    return ProcessPool(configs, SHORT_TIMEOUTS, MISBEHAVING)


async def test_what_is_too_large_for_a_device_is_tried_once_on_a_larger_one(tmp_path: Path) -> None:
    pool = with_memory(1, 2)
    await pool.start()
    result = await pool.evaluate(job("out-of-memory-once", tmp_path))
    assert (result.cross_entropy, result.device) == (right_cross_entropy(), "cpu")
    with pytest.raises(OutOfMemory):
        await pool.evaluate(job("out-of-memory", tmp_path))
    assert [status.restarts for status in pool.status()] == [0, 0]
    await pool.close()


async def test_what_is_too_large_for_the_largest_device_fails(tmp_path: Path) -> None:
    pool = with_memory(2, 1)
    await pool.start()
    with pytest.raises(OutOfMemory):
        await pool.evaluate(job("out-of-memory-once", tmp_path))
    await pool.close()
