"""What counts as silence, and what as work that does not advance."""

import pytest

from workers.messages import Accepted, FromWorker, Heartbeat
from workers.processes.liveness import Liveness


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def liveness(clock: Clock) -> Liveness:
    return Liveness(heartbeat_seconds=1.0, clock=clock)


def pass_time(liveness: Liveness, clock: Clock, message: FromWorker | None, times: int = 3) -> None:
    for _ in range(times):
        clock.now += 1.0
        liveness.observe(message)


def test_silence_is_counted_until_a_message(liveness: Liveness, clock: Clock) -> None:
    pass_time(liveness, clock, None)
    assert (liveness.silent_seconds, liveness.stalled_seconds) == (3.0, 3.0)
    liveness.observe(Heartbeat(0))
    assert (liveness.silent_seconds, liveness.stalled_seconds) == (0.0, 3.0)


def test_only_progress_ends_a_stall(liveness: Liveness, clock: Clock) -> None:
    pass_time(liveness, clock, Heartbeat(0))
    assert liveness.stalled_seconds == 3.0
    liveness.observe(Heartbeat(1))
    assert liveness.stalled_seconds == 0.0
    pass_time(liveness, clock, Heartbeat(1))
    liveness.observe(Accepted(1))
    assert liveness.stalled_seconds == 0.0


def test_a_new_task_is_not_held_to_the_time_before_it(liveness: Liveness, clock: Clock) -> None:
    pass_time(liveness, clock, Heartbeat(0))
    liveness.task_begins()
    assert liveness.stalled_seconds == 0.0


def test_of_a_machine_that_slept_only_a_moment_counts(liveness: Liveness, clock: Clock) -> None:
    clock.now += 3600.0
    liveness.observe(None)
    assert (liveness.silent_seconds, liveness.stalled_seconds) == (2.0, 2.0)
