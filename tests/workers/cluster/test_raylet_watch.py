"""How long a process has been stopped: a real one, and a clock of the test's."""

import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.sockets import wait_until
from workers.cluster.raylet_watch import RayletWatch


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    started = subprocess.Popen(["sleep", "600"])
    yield started
    started.kill()
    started.wait()


def test_it_counts_while_the_process_is_stopped_and_anew_after_it_went_on(
    process: subprocess.Popen[bytes],
) -> None:
    clock = Clock()
    watch = RayletWatch(process.pid, clock)
    clock.now += 1.0
    assert watch.stopped_seconds() == 0.0
    process.send_signal(signal.SIGSTOP)
    clock.now += 1.0
    wait_until(lambda: watch._is_stopped())
    assert watch.stopped_seconds() == 0.0  # from the first look on
    clock.now += 7.0
    assert watch.stopped_seconds() == 7.0
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: watch.stopped_seconds() == 0.0)
    process.send_signal(signal.SIGSTOP)
    wait_until(lambda: watch._is_stopped())
    assert watch.stopped_seconds() == 0.0


def test_a_process_that_is_gone_is_not_stopped(process: subprocess.Popen[bytes]) -> None:
    watch = RayletWatch(process.pid)
    process.kill()
    process.wait()
    assert watch.stopped_seconds() == 0.0
