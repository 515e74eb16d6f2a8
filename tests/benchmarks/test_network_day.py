"""A simulated day: every submission ends once, work is neither lost nor doubled, and simple cases are exact."""

import asyncio
from dataclasses import replace

import pytest

from benchmarks.network_day import virtual_clock
from benchmarks.network_day.day import Cluster, Day, simulate
from benchmarks.network_day.service_times import GB, DeviceTimes
from benchmarks.network_day.shared_resource import SharedResource
from benchmarks.network_day.workload import Submission, Workload, submissions

pytestmark = pytest.mark.slow

ONE_SECOND_EACH = DeviceTimes(
    name="a second for a sequence",
    per_sequence=1.0,
    per_batch=0.0,
    per_task=0.0,
    load_bytes_per_second=0.5 * GB,
    start=10.0,
    self_test=0.0,
    resident_bytes=10 * GB,
)
PLAIN = Cluster(
    device=ONE_SECOND_EACH,
    head_link=1e15,
    node_link=1e15,
    weights_are_here=True,
    nodes_have_weights=True,
    seconds_per_file=0.0,
    self_tests=False,
)
"""One node on which nothing takes time but loading weights (2 s) and computing."""
A_LITTLE = 0.01
"""Seconds that the data of all submissions before takes to the node, at the rate at which it verifies them."""
ONE_MODEL = Workload(
    num_targets=1,
    models_per_target=1,
    num_models=1,
    least_data_bytes=1024,
    most_data_bytes=1024,
    weights_bytes=GB,
)
BUSY = Workload(
    submissions_per_second=0.2,
    seconds=600.0,
    least_data_bytes=1_000,
    most_data_bytes=100_000,
    num_targets=8,
    num_models=24,
    weights_bytes=GB,
)


def sequences_of(load: Workload) -> int:
    """Of all evaluations together."""
    return sum(len(each.weights) * -(-each.data_bytes // 1024) for each in submissions(load))


def ended(day: Day) -> int:
    """Submissions that have an outcome."""
    return day.outcomes.ended.total()


def test_submissions_at_once_are_answered_one_second_after_the_other() -> None:
    day = simulate(replace(ONE_MODEL, seconds=0, num_submissions=5), PLAIN)

    # The weights are loaded for the first one, in 2 s.
    assert day.outcomes.response_seconds == pytest.approx([3.0, 4.0, 5.0, 6.0, 7.0], abs=A_LITTLE)
    assert day.gpu_busy_seconds == pytest.approx(7.0, abs=A_LITTLE)
    assert (day.num_loads, day.num_sequences) == (1, 5)


def test_one_server_with_random_arrivals_and_one_time_for_each_is_exact() -> None:
    load = replace(ONE_MODEL, seconds=2_000.0, submissions_per_second=0.5)
    # Lindley's recursion: each starts when it has come and the one before has ended.
    expected, free_at = [], 2.0
    for number, submission in enumerate(submissions(load)):
        start = submission.at + 2.0 if number == 0 else max(submission.at, free_at)
        free_at = start + 1.0
        expected.append(free_at - submission.at)

    day = simulate(load, PLAIN)

    assert day.outcomes.response_seconds == pytest.approx(expected, abs=A_LITTLE)
    assert len(expected) > 900


def test_an_evaluation_is_shared_between_nodes() -> None:
    load = replace(
        ONE_MODEL,
        seconds=0,
        num_submissions=1,
        least_data_bytes=64 * 16 * 1024,
        most_data_bytes=64 * 16 * 1024,
    )
    alone, shared = (simulate(load, replace(PLAIN, num_nodes=n)) for n in (1, 4))

    assert alone.outcomes.last_at == pytest.approx(2 + 64 * 16, abs=A_LITTLE)
    # Each loads the weights; the last range of batches may end one batch after the others.
    assert 2 + 16 * 16 <= shared.outcomes.last_at <= 2 + 2 + 17 * 16 + A_LITTLE
    assert shared.num_sequences == alone.num_sequences


@pytest.mark.parametrize("num_nodes", [1, 4])
def test_every_submission_ends_once_and_work_is_conserved(num_nodes: int) -> None:
    cluster = replace(PLAIN, num_nodes=num_nodes, device=replace(ONE_SECOND_EACH, per_sequence=0.01))

    day = simulate(BUSY, cluster)

    assert ended(day) == day.outcomes.num_done == len(list(submissions(BUSY)))
    assert day.num_sequences == sequences_of(BUSY)
    assert day.gpu_busy_seconds >= 0.01 * day.num_sequences
    assert day.gpu_busy_seconds <= num_nodes * day.seconds


def test_what_there_is_no_room_for_is_refused() -> None:
    load = replace(ONE_MODEL, seconds=0, num_submissions=100)

    day = simulate(load, PLAIN)

    assert day.outcomes.ended == {"done": 64, "QueueFull": 36}


def test_what_a_lost_node_had_in_hand_is_done_by_others() -> None:
    cluster = replace(
        PLAIN, num_nodes=4, losses_per_node=400.0, device=replace(ONE_SECOND_EACH, per_sequence=0.01)
    )

    day = simulate(BUSY, cluster)

    assert day.num_losses > 0
    assert ended(day) == day.outcomes.num_done == len(list(submissions(BUSY)))
    assert day.num_sequences >= sequences_of(BUSY)


def test_without_any_node_submissions_end_with_an_error() -> None:
    cluster = replace(PLAIN, losses_per_node=400.0, device=replace(ONE_SECOND_EACH, per_sequence=0.01))

    day = simulate(replace(BUSY, seconds=2_000.0), cluster)

    assert day.num_losses > 1
    assert set(day.outcomes.ended) == {"done", "NoWorker"}
    assert ended(day) == len(list(submissions(replace(BUSY, seconds=2_000.0))))


def test_the_same_seed_gives_the_same_day() -> None:
    cluster = replace(
        PLAIN, num_nodes=3, losses_per_node=100.0, device=replace(ONE_SECOND_EACH, per_sequence=0.01)
    )
    one, other, third = (simulate(replace(BUSY, seed=seed), cluster) for seed in (1, 1, 2))

    for day in (one, other):
        day.dispatch_seconds = day.status_seconds = 0.0  # real times, not virtual ones
    assert one == other
    assert one.outcomes != third.outcomes


def test_weights_are_sent_to_a_node_once_and_downloaded_once() -> None:
    load = replace(BUSY, num_models=6)
    cluster = replace(PLAIN, num_nodes=2, weights_are_here=False, nodes_have_weights=False)

    day = simulate(load, replace(cluster, device=replace(ONE_SECOND_EACH, per_sequence=0.01)))

    data = 2 * sum(each.data_bytes for each in submissions(load))
    assert day.bytes_downloaded == 6 * GB
    assert 6 * GB < day.bytes_to_nodes <= 2 * 6 * GB + data


def test_a_model_goes_to_the_nodes_that_serve_it_and_not_to_all() -> None:
    cluster = replace(
        PLAIN,
        num_nodes=4,
        device=replace(ONE_SECOND_EACH, per_sequence=0.01),
        head_link=0.2 * GB,
        nodes_have_weights=False,
    )

    day = simulate(replace(BUSY, submissions_per_second=0.5), cluster)

    assert day.outcomes.ended == {"done": day.outcomes.num_done}
    assert day.bytes_to_nodes < 2 * 24 * GB  # to all it would be 4 times the 24 models
    assert day.num_loads < 2 * 24


def test_new_weights_come_with_a_new_epoch() -> None:
    load = replace(BUSY, num_models=6, epoch_seconds=300.0)

    day = simulate(load, replace(PLAIN, weights_are_here=False, nodes_have_weights=False))

    assert day.bytes_downloaded == 12 * GB


def test_a_resource_is_shared_evenly() -> None:
    async def ends() -> list[float]:
        link = SharedResource(10.0, most_each=8.0)

        async def move(units: float, at: float) -> float:
            await asyncio.sleep(at)
            await link.use(units)
            return asyncio.get_running_loop().time()

        return list(await asyncio.gather(move(24.0, 0.0), move(30.0, 2.0), move(8.0, 20.0)))

    # 8 each second for 2 s; then 5 each; the first is done at 3.6 s, the second has 22 left at 8 each second.
    assert virtual_clock.run(ends()) == pytest.approx([3.6, 6.35, 21.0])


def test_more_users_than_can_be_served_share_what_those_would_get() -> None:
    async def seconds() -> float:
        link = SharedResource(100.0, most_each=1.0, most_users=2)
        await asyncio.gather(*(link.use(1.0) for _ in range(4)))
        return asyncio.get_running_loop().time()

    assert virtual_clock.run(seconds()) == pytest.approx(2.0)


def test_a_loop_on_which_nothing_is_due_says_so() -> None:
    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(virtual_clock.Stalled):
        virtual_clock.run(wait_for_ever())


def test_submissions_come_in_order_and_name_models_of_one_target() -> None:
    found = list(submissions(replace(BUSY, num_targets=4, num_models=12)))

    assert [each.number for each in found] == list(range(len(found)))
    assert [each.at for each in found] == sorted(each.at for each in found)
    assert {each.weights for each in found} == {
        tuple(f"model-{3 * target + i}-of-epoch-0" for i in range(3)) for target in range(4)
    }
    assert all(isinstance(each, Submission) and 1_000 <= each.data_bytes <= 100_000 for each in found)
