"""Admission, fair order, deadlines, draining."""

import asyncio
from contextlib import nullcontext

import pytest

from service.errors import DeadlineExceeded, Draining, QueueFull
from service.scheduler import Scheduler, Ticket


def scheduler(queue_size: int = 8, max_running: int = 1, timeout_seconds: float = 60.0) -> Scheduler:
    return Scheduler(
        queue_size=queue_size,
        max_running=max_running,
        max_weights_held=max_running,
        kept_bytes=100 * max_running,
        timeout_seconds=timeout_seconds,
    )


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


@pytest.mark.parametrize("with_weights", [False, True], ids=["turns", "weights, then turns"])
async def test_places_go_round_between_requests(with_weights: bool) -> None:
    policy = scheduler()
    order: list[str] = []

    async def evaluate(name: str, ticket: Ticket) -> None:
        room = policy.room_for_weights(ticket, 100) if with_weights else nullcontext()
        async with room, policy.turn(ticket):
            order.append(name)
            await asyncio.sleep(0)

    async with policy.admit(3) as large, policy.admit(1) as small, asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(evaluate("large", large))
        group.create_task(evaluate("small", small))
    assert order == ["large", "small", "large", "large"]


async def test_one_request_leaves_room_for_the_weights_of_others() -> None:
    policy = scheduler(max_running=4)
    async with policy.admit(4) as slow, policy.admit(1) as other:
        fetching = [asyncio.create_task(_keep_weights(policy, slow)) for _ in range(4)]
        await asyncio.sleep(0)
        async with asyncio.timeout(1), policy.room_for_weights(other, 100):
            pass
        for task in fetching:
            task.cancel()
        await asyncio.wait(fetching)


async def _keep_weights(policy: Scheduler, ticket: Ticket, num_bytes: int = 100) -> None:
    async with policy.room_for_weights(ticket, num_bytes):
        await asyncio.sleep(60)


async def test_large_weights_take_the_room_of_several() -> None:
    policy = scheduler(max_running=8)
    async with policy.admit() as large, policy.admit(8) as small:
        fetching = [asyncio.create_task(_keep_weights(policy, large, num_bytes=301))]
        fetching += [asyncio.create_task(_keep_weights(policy, small, num_bytes=1)) for _ in range(4)]
        await asyncio.sleep(0)
        async with policy.admit() as other:
            waiting = asyncio.create_task(_keep_weights(policy, other, num_bytes=1))
            await asyncio.sleep(0.01)
            assert not waiting.done()
            fetching[0].cancel()  # four places are free again
            async with asyncio.timeout(1), policy.room_for_weights(other, 201):
                pass
            for task in (*fetching, waiting):
                task.cancel()
            await asyncio.wait([*fetching, waiting])


async def test_one_who_waits_for_much_room_is_not_overtaken_and_holds_up_nobody_by_leaving() -> None:
    policy = scheduler(max_running=8)
    async with (
        policy.admit() as first,
        policy.admit() as second,
        policy.admit() as large,
        policy.admit() as small,
        policy.room_for_weights(first, 400),
        policy.room_for_weights(second, 100),
    ):
        too_large = asyncio.create_task(_keep_weights(policy, large, num_bytes=400))
        await asyncio.sleep(0)
        fits = asyncio.create_task(_keep_weights(policy, small, num_bytes=100))
        await asyncio.sleep(0.01)
        assert policy.num_waiting_for_room == 2
        too_large.cancel()
        await asyncio.wait([too_large])
        assert policy.num_waiting_for_room == 0
        fits.cancel()
        await asyncio.wait([fits])


async def test_no_more_turns_than_there_are() -> None:
    policy = scheduler(max_running=2)
    running = peak = 0

    async def evaluate() -> None:
        nonlocal running, peak
        async with policy.admit() as ticket, policy.turn(ticket):
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0.01)
            running -= 1

    async with asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(evaluate())
    assert peak == 2
    assert (policy.num_admitted, policy.num_waiting) == (0, 0)


async def test_one_who_leaves_while_waiting_does_not_keep_a_turn() -> None:
    policy = scheduler()
    async with policy.admit() as first, policy.admit() as second:
        async with policy.turn(first):
            waiting = asyncio.create_task(_take_turn(policy, second))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.wait([waiting])
        async with asyncio.timeout(1), policy.turn(second):
            pass


async def test_one_who_leaves_as_the_turn_comes_gives_it_back() -> None:
    policy = scheduler()
    async with policy.admit() as first, policy.admit() as second:
        async with policy.turn(first):
            waiting = asyncio.create_task(_take_turn(policy, second))
            await asyncio.sleep(0)
        waiting.cancel()  # the turn is handed over already, the task has not run since
        await asyncio.wait([waiting])
        async with asyncio.timeout(1), policy.turn(first):
            pass


async def test_one_who_leaves_just_before_the_turn_would_come_is_passed_over() -> None:
    policy = scheduler()
    async with policy.admit() as first, policy.admit() as second, policy.admit() as third:
        async with policy.turn(first):
            leaving = asyncio.create_task(_take_turn(policy, second))
            staying = asyncio.create_task(_take_turn(policy, third))
            await asyncio.sleep(0)
            leaving.cancel()  # its task has not run since when the turn is given back
        await asyncio.wait([leaving])
        assert policy.num_waiting == 0
        staying.cancel()
        await asyncio.wait([staying])


async def _take_turn(policy: Scheduler, ticket: Ticket) -> None:
    async with policy.turn(ticket):
        await asyncio.sleep(60)


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
