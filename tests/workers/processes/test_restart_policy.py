"""When a device gets its next worker: the waits, and what takes a device out of service and back."""

import pytest

from workers.messages import Evaluate
from workers.processes.restart_policy import MAX_FAILED_STARTS, RestartPolicy
from workers.processes.timeouts import Timeouts
from workers.processes.worker_death import Cause, Death
from workers.types import EvalJob

TIMEOUTS = Timeouts(
    restart_seconds=1.0,
    max_restart_seconds=10.0,
    out_of_service_seconds=100.0,
    max_out_of_service_seconds=300.0,
)
IDLE_DEATH = Death("ended", Cause.OTHER)
FAILED_START = Death("failed its self-test", Cause.ERROR, starting=True)


@pytest.fixture
def policy() -> RestartPolicy:
    return RestartPolicy(TIMEOUTS)


def death_during(weights: str, cause: Cause = Cause.ERROR) -> Death:
    return Death("ended", cause, task=Evaluate(1, EvalJob("path", weights, "data", 1, 0), 0, 1))


def lose(policy: RestartPolicy, *weights: str, cause: Cause = Cause.ERROR) -> None:
    for name in weights:
        policy.worker_died(death_during(name, cause), lifetime_seconds=1.0)


def test_the_wait_doubles_with_each_death_in_a_row(policy: RestartPolicy) -> None:
    for longest in (1.0, 2.0, 4.0, 8.0, 10.0, 10.0):
        policy.worker_died(IDLE_DEATH, lifetime_seconds=1.0)
        assert longest / 2 <= policy.delay_seconds() <= longest


def test_a_finished_task_and_a_long_life_begin_a_new_row(policy: RestartPolicy) -> None:
    for _ in range(5):
        policy.worker_died(IDLE_DEATH, lifetime_seconds=1.0)
    policy.worker_died(IDLE_DEATH, lifetime_seconds=11.0)
    assert policy.delay_seconds() <= 1.0
    policy.worker_died(IDLE_DEATH, lifetime_seconds=1.0)
    policy.task_finished()
    policy.worker_died(IDLE_DEATH, lifetime_seconds=1.0)
    assert policy.delay_seconds() <= 1.0


def test_a_device_whose_starts_fail_is_not_waited_for_until_one_passes(policy: RestartPolicy) -> None:
    for _ in range(MAX_FAILED_STARTS):
        assert not policy.cannot_start
        policy.worker_died(FAILED_START, lifetime_seconds=1.0)
    assert policy.cannot_start
    assert policy.trouble == "the last worker failed its self-test"
    policy.self_test_passed()
    assert not policy.cannot_start


def test_three_evaluations_in_a_row_take_a_device_out_of_service(policy: RestartPolicy) -> None:
    lose(policy, "a", "b")
    assert "out of service" not in policy.trouble
    lose(policy, "a")
    assert policy.is_out_of_service
    assert policy.cannot_start
    assert "is tested after 100 s" in policy.trouble
    for expected in (200.0, 300.0, 300.0):
        policy.self_test_passed()
        assert "out of service" not in policy.trouble
        lose(policy, "a")
        assert policy.delay_seconds() == expected


def test_one_evaluation_alone_does_not(policy: RestartPolicy) -> None:
    lose(policy, *["a"] * 10)
    assert not policy.is_out_of_service


def test_nor_does_one_that_is_followed_by_a_finished_task(policy: RestartPolicy) -> None:
    for _ in range(5):
        lose(policy, "a", "b")
        policy.task_finished()
    assert not policy.is_out_of_service


@pytest.mark.parametrize("cause", [Cause.KILLED, Cause.OTHER])
def test_nor_do_deaths_that_the_device_cannot_have_caused(policy: RestartPolicy, cause: Cause) -> None:
    lose(policy, *"abcdef", cause=cause)
    assert not policy.is_out_of_service
