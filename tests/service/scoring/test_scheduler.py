"""Admission, fair order, deadlines, draining."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path

import pytest

from service.errors import DeadlineExceeded, Draining, QueueFull
from service.scoring.fair_order import Use
from service.scoring.scheduler import Scheduler, Ticket
from tests.workers.processes.pools import job, misbehaving_pool


def scheduler(queue_size: int = 8, max_downloads: int = 1, timeout_seconds: float = 60.0) -> Scheduler:
    return Scheduler(
        queue_size=queue_size,
        num_workers=lambda: 1,
        max_downloads=max_downloads,
        kept_bytes=100 * max_downloads,
        timeout_seconds=timeout_seconds,
    )


class Worker:
    """Begins what waits in the order of the entries, one after the other, as a pool does."""

    def __init__(self, policy: Scheduler) -> None:
        self._policy = policy
        self._waiting: dict[Use[Ticket], asyncio.Future[None]] = {}
        self._is_busy = False

    @asynccontextmanager
    async def evaluating(self, ticket: Ticket) -> AsyncIterator[None]:
        """One evaluation, which waits for the worker, and has it for the block."""
        with self._policy.queue_entry(ticket) as entry:
            begun = self._waiting[entry] = asyncio.get_running_loop().create_future()
            self._begin_next()
            await begun
            try:
                yield
            finally:
                self._is_busy = False
                asyncio.get_running_loop().call_soon(self._begin_next)  # once this entry has ended

    def _begin_next(self) -> None:
        if self._waiting and not self._is_busy:
            self._is_busy = True
            entry = min(self._waiting, key=lambda each: each.rank)
            entry.begin()
            self._waiting.pop(entry).set_result(None)

    async def evaluate(self, ticket: Ticket, seconds: float = 0.002) -> None:
        """One that takes so long."""
        async with self.evaluating(ticket):
            await asyncio.sleep(seconds)


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    policy = scheduler(queue_size=1)
    async with policy.admit():
        with pytest.raises(QueueFull) as refused:
            async with policy.admit():
                pass
    assert refused.value.retry_after_seconds is not None
    assert refused.value.retry_after_seconds >= 1
    async with policy.admit():
        assert policy.num_admitted == 1


@pytest.mark.parametrize("with_weights", [False, True], ids=["workers", "weights, then workers"])
async def test_places_go_round_between_requests(with_weights: bool) -> None:
    policy = scheduler()
    worker = Worker(policy)
    order: list[str] = []

    async def evaluate(name: str, ticket: Ticket) -> None:
        room = policy.weights_slot(ticket, 100, is_downloaded=False) if with_weights else nullcontext()
        async with room, worker.evaluating(ticket):
            order.append(name)
            await asyncio.sleep(0)

    async with policy.admit(3) as large, policy.admit(1) as small, asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(evaluate("large", large))
        group.create_task(evaluate("small", small))
    assert order == ["large", "small", "large", "large"]


async def test_one_request_leaves_room_for_the_weights_of_others() -> None:
    policy = scheduler(max_downloads=4)
    async with policy.admit(4) as slow, policy.admit(1) as other:
        fetching = [asyncio.create_task(_keep_weights(policy, slow)) for _ in range(4)]
        await asyncio.sleep(0)
        async with asyncio.timeout(1), policy.weights_slot(other, 100, is_downloaded=False):
            pass
        await _cancel(*fetching)


async def _keep_weights(
    policy: Scheduler, ticket: Ticket, num_bytes: int = 100, is_downloaded: bool = False
) -> None:
    async with policy.weights_slot(ticket, num_bytes, is_downloaded=is_downloaded):
        await asyncio.sleep(60)


async def _cancel(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


async def test_weights_that_are_here_wait_for_no_download() -> None:
    policy = scheduler(max_downloads=4)
    async with policy.admit(8) as slow, policy.admit(8) as slower, policy.admit() as other:
        fetching = [asyncio.create_task(_keep_weights(policy, each, 10)) for each in (slow, slower) * 4]
        await asyncio.sleep(0)
        assert policy.num_waiting_for_room == 4
        async with asyncio.timeout(1), policy.weights_slot(other, 10, is_downloaded=True):
            pass
        await _cancel(*fetching)


async def test_weights_wait_until_they_fit_on_the_disk() -> None:
    policy = scheduler(max_downloads=8)  # 800 bytes
    async with policy.admit() as large, policy.admit() as other, policy.admit() as here:
        fetching = asyncio.create_task(_keep_weights(policy, large, num_bytes=700))
        await asyncio.sleep(0)
        waiting = [asyncio.create_task(_keep_weights(policy, other, num_bytes=200))]
        waiting += [asyncio.create_task(_keep_weights(policy, here, num_bytes=101, is_downloaded=True))]
        await asyncio.sleep(0.01)
        assert policy.num_waiting_for_room == 2
        await _cancel(fetching)
        assert policy.num_waiting_for_room == 0
        await _cancel(*waiting)


async def test_one_request_leaves_half_of_the_disk_to_others_unless_one_file_is_larger() -> None:
    policy = scheduler(max_downloads=8)  # 800 bytes
    async with policy.admit() as first, policy.admit() as second:
        fetching = [asyncio.create_task(_keep_weights(policy, first, num_bytes=250)) for _ in range(2)]
        await asyncio.sleep(0)
        assert policy.num_waiting_for_room == 1
        async with asyncio.timeout(1), policy.weights_slot(second, 500, is_downloaded=False):
            pass
        await _cancel(*fetching)


async def test_a_slot_gives_its_connection_back_once_the_weights_are_here() -> None:
    policy = scheduler(max_downloads=1)
    async with policy.admit() as first, policy.admit() as second:
        async with policy.weights_slot(first, 10, is_downloaded=False) as slot:
            waiting = asyncio.create_task(_keep_weights(policy, second, num_bytes=10))
            await asyncio.sleep(0)
            assert [slot.is_wanted, policy.num_waiting_for_room] == [True, 1]
            slot.release_connection()
            assert [slot.is_wanted, policy.num_waiting_for_room] == [False, 0]
        await _cancel(waiting)


async def test_a_slot_is_not_wanted_by_those_who_may_not_have_it() -> None:
    policy = scheduler(max_downloads=4)
    async with policy.admit(8) as large, policy.admit() as small:
        fetching = [asyncio.create_task(_keep_weights(policy, large, num_bytes=10)) for _ in range(8)]
        await asyncio.sleep(0)
        async with policy.weights_slot(small, 10, is_downloaded=False) as slot:
            assert policy.num_waiting_for_room == 6
            assert not slot.is_wanted  # `large` holds as many as it may
        await _cancel(*fetching)


async def test_one_who_waits_for_much_room_is_not_overtaken_and_holds_up_nobody_by_leaving() -> None:
    policy = scheduler(max_downloads=8)  # 800 bytes
    async with (
        policy.admit() as first,
        policy.admit() as large,
        policy.admit() as small,
        policy.weights_slot(first, 500, is_downloaded=False),
    ):
        too_large = asyncio.create_task(_keep_weights(policy, large, num_bytes=400))
        await asyncio.sleep(0)
        fits = asyncio.create_task(_keep_weights(policy, small, num_bytes=100))
        await asyncio.sleep(0.01)
        assert policy.num_waiting_for_room == 2
        await _cancel(too_large)
        assert policy.num_waiting_for_room == 0
        await _cancel(fits)


async def test_a_competition_is_served_beside_a_stream_of_single_evaluations() -> None:
    """Whoever has been served least is not always one that has just come."""
    policy = scheduler()
    worker = Worker(policy)
    num_single = 0
    is_over = False

    async def single() -> None:
        nonlocal num_single
        while not is_over and num_single < 1000:
            async with policy.admit() as ticket:
                await worker.evaluate(ticket)
            num_single += 1

    async with asyncio.TaskGroup() as clients:
        for _ in range(3):
            clients.create_task(single())
        await asyncio.sleep(0.01)
        num_before = num_single
        async with policy.admit(4) as ticket, asyncio.TaskGroup() as models:
            for _ in range(4):
                models.create_task(worker.evaluate(ticket))
        num_beside = num_single - num_before
        is_over = True
    assert num_beside < 4 * 4 * 3  # an even share would be 12


async def test_workers_are_shared_by_time_and_not_by_number() -> None:
    """Weights that take ten times as long get a tenth as many."""
    policy = scheduler()
    worker = Worker(policy)
    served = {"slow": 0, "quick": 0}

    async def evaluate(name: str, ticket: Ticket, seconds: float) -> None:
        async with worker.evaluating(ticket):
            served[name] += 1
            await asyncio.sleep(seconds)

    async with policy.admit(100) as slow, policy.admit(40) as quick:
        tasks = [asyncio.create_task(evaluate("slow", slow, 0.05)) for _ in range(100)]
        quick_tasks = [asyncio.create_task(evaluate("quick", quick, 0.005)) for _ in range(40)]
        await asyncio.wait(quick_tasks)
        assert served["slow"] <= 16  # by number it would be 40, by time 4
        await _cancel(*tasks)


async def test_a_pool_begins_the_evaluations_of_requests_in_queue_entry(tmp_path: Path) -> None:
    policy = scheduler()
    order: list[str] = []

    async with misbehaving_pool() as pool:

        async def evaluate(name: str, ticket: Ticket, number: int) -> None:
            with policy.queue_entry(ticket) as entry:
                await pool.evaluate(job(f"{name}-{number}", tmp_path, num_batches=1), entry=entry)
            order.append(name)

        async with policy.admit(20) as large, policy.admit(2) as small, asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(evaluate("large", large, number))
            for number in range(2):
                group.create_task(evaluate("small", small, number))
    assert (policy.num_running, policy.num_waiting) == (0, 0)
    assert order.count("large") == 20
    assert "small" not in order[6:]


async def test_time_in_which_a_request_wanted_nothing_is_not_saved_up() -> None:
    policy = scheduler()
    worker = Worker(policy)
    order: list[str] = []

    async def evaluate(name: str, ticket: Ticket) -> None:
        async with worker.evaluating(ticket):
            order.append(name)
            await asyncio.sleep(0.005)

    async with policy.admit(9) as late, policy.admit(9) as steady:
        await worker.evaluate(late, seconds=0.0)
        for _ in range(6):
            await worker.evaluate(steady, seconds=0.01)
        async with asyncio.TaskGroup() as group:
            for name, ticket in (("late", late), ("steady", steady)) * 3:
                group.create_task(evaluate(name, ticket))
    assert "steady" in order[:2]


async def test_downloads_leave_time_for_what_is_still_to_be_evaluated() -> None:
    policy = scheduler(timeout_seconds=100.0)  # an evaluation is expected to take 5 s at first
    async with policy.admit(4) as ticket:
        assert policy.seconds_for_downloads(ticket) == pytest.approx(80.0, abs=1.0)
        ticket.num_finished = 3
        assert policy.seconds_for_downloads(ticket) == pytest.approx(95.0, abs=1.0)
        ticket.num_finished = 4
        assert policy.seconds_for_downloads(ticket) == pytest.approx(98.0, abs=1.0)
    async with policy.admit(64) as ticket:
        assert policy.seconds_for_downloads(ticket) == pytest.approx(50.0, abs=1.0)


async def test_what_waits_and_what_runs_is_counted() -> None:
    policy = scheduler()
    async with policy.admit(2) as ticket:
        with policy.queue_entry(ticket) as first, policy.queue_entry(ticket) as second:
            assert (policy.num_running, policy.num_waiting) == (0, 2)
            first.begin()
            assert (policy.num_running, policy.num_waiting) == (1, 1)
            assert policy.oldest_waiting_since == second.asked_at
        assert (policy.num_running, policy.num_waiting) == (0, 0)
        assert policy.oldest_waiting_since is None


async def test_one_who_leaves_while_waiting_has_used_nothing() -> None:
    policy = scheduler()
    async with policy.admit() as first, policy.admit() as second:
        with policy.queue_entry(first) as entry:
            before = entry.rank
        with policy.queue_entry(second) as served:
            served.begin()
        with policy.queue_entry(first) as entry:
            assert entry.rank == pytest.approx(before, abs=0.01)
            assert entry.waited_seconds < 1.0


async def test_a_request_past_its_deadline_is_stopped() -> None:
    policy = scheduler(timeout_seconds=0.01)
    with pytest.raises(DeadlineExceeded):
        async with policy.admit():
            await asyncio.sleep(60)
    assert policy.num_admitted == 0


async def test_a_timeout_of_the_work_itself_is_not_the_deadline() -> None:
    with pytest.raises(TimeoutError):
        async with scheduler().admit():
            raise TimeoutError


async def test_draining_refuses_the_new_and_waits_for_the_old() -> None:
    policy = scheduler()
    running = asyncio.create_task(_admitted_for(policy, 0.05))
    await asyncio.sleep(0)
    draining = asyncio.create_task(policy.drain(10.0))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        async with policy.admit():
            pass
    assert await draining
    await running


async def test_draining_gives_up_at_its_limit() -> None:
    policy = scheduler()
    running = asyncio.create_task(_admitted_for(policy, 60))
    await asyncio.sleep(0)
    assert not await policy.drain(0.01)
    running.cancel()
    await asyncio.wait([running])


async def test_what_is_left_at_the_limit_is_ended_and_told() -> None:
    policy = scheduler()
    running = asyncio.create_task(_admitted_for(policy, 60))
    await asyncio.sleep(0)
    assert not await policy.drain(0.0)
    assert await policy.end_admitted(10.0)
    with pytest.raises(Draining):
        await running


async def _admitted_for(policy: Scheduler, seconds: float) -> None:
    async with policy.admit():
        await asyncio.sleep(seconds)
