"""Threads that share work: who does what, what an error does, and what they leave as it was."""

import gc
import os
import signal
import threading
import time
import warnings
import weakref
from collections.abc import Callable

import pytest
import torch

from workers.v1.cancellation import never_cancelled
from workers.v1.team import Team, compute

SECONDS = 20.0
"""How long a thread waits for another before its test fails."""


class Stop(Exception):
    """What a caller, or a part of the work, raises."""


class Array(list[int]):
    """Something large, as far as a test is concerned."""


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_results_come_in_order(num_threads: int) -> None:
    def work(team: Team) -> list[list[int]]:
        return team.share(lambda i: team.share(lambda j: 10 * i + j, range(i)), range(6))

    assert compute(work, num_threads, never_cancelled) == [[10 * i + j for j in range(i)] for i in range(6)]


def test_a_thread_without_a_part_of_its_own_helps_with_those_of_another() -> None:
    both = threading.Barrier(2, timeout=SECONDS)

    def work(team: Team) -> int:
        (index,) = team.share(lambda _: max(team.share(lambda i: both.wait() + 10 * i, range(2))), [0])
        return index

    assert compute(work, 2, never_cancelled) >= 10


def test_no_more_are_begun_than_may_be_at_once() -> None:
    now = most = 0
    lock = threading.Lock()

    def enter_and_leave(_: int) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.002)
        with lock:
            now -= 1

    compute(lambda team: team.share(enter_and_leave, range(20), 2), 4, never_cancelled)
    assert most == 2


@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_error_of_one_part_ends_all_and_is_the_callers(num_threads: int) -> None:
    done: list[int] = []

    def part(i: int) -> None:
        if i == 3:
            raise Stop
        done.append(i)

    with pytest.raises(Stop):
        compute(
            lambda team: team.share(lambda _: team.share(part, range(1000)), [0]),
            num_threads,
            never_cancelled,
        )
    assert len(done) < 999
    counted = len(done)
    time.sleep(0.05)
    assert len(done) == counted  # nobody works on


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_cancel_check_is_called_from_the_callers_thread_and_ends_the_work(num_threads: int) -> None:
    called_from: list[threading.Thread] = []
    began: list[int] = []

    def part(i: int) -> None:
        began.append(i)
        time.sleep(0.005)

    def stop_at_third() -> None:
        called_from.append(threading.current_thread())
        if len(called_from) == 3:
            raise Stop

    with pytest.raises(Stop):
        compute(lambda team: team.share(part, range(10_000)), num_threads, stop_at_third)
    assert called_from == [threading.current_thread()] * 3
    assert len(began) < 10_000


def test_an_error_keeps_nothing_alive() -> None:
    """So that memory that ran out is there again as soon as the error is handled."""
    arrays: list[weakref.ref[Array]] = []

    def work(team: Team) -> None:
        array = Array()
        arrays.append(weakref.ref(array))

        def part(i: int) -> None:
            array.append(i)
            if i == 5:
                raise MemoryError

        team.share(part, range(10))

    gc.disable()
    try:
        with pytest.raises(MemoryError):
            compute(work, 2, never_cancelled)
        assert arrays[0]() is None
    finally:
        gc.enable()


def test_a_part_computes_with_one_thread_of_torch_and_without_gradients(
    set_num_threads: Callable[[int], None],
) -> None:
    set_num_threads(3)
    both = threading.Barrier(2, timeout=SECONDS)

    def part(_: int) -> tuple[int, bool]:
        both.wait()  # so that each thread does one
        return torch.get_num_threads(), torch.is_inference_mode_enabled()

    for _ in range(2):
        assert compute(lambda team: team.share(part, range(2)), 2, never_cancelled) == [(1, True)] * 2


def test_torch_has_its_threads_in_the_caller_and_in_threads_to_come(
    set_num_threads: Callable[[int], None],
) -> None:
    set_num_threads(3)
    alive = threading.active_count()
    num_new = alive + 1  # more than any test before it can have left
    compute(lambda team: team.share(lambda i: i, range(num_new)), num_new, never_cancelled)
    assert threading.active_count() > alive
    seen = [torch.get_num_threads()]
    thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert seen == [3, 3]


def test_threads_are_kept_for_the_next_time() -> None:
    work = [compute(lambda team: team.share(lambda i: i, range(9)), 3, never_cancelled) for _ in range(2)]
    alive = threading.active_count()
    work += [compute(lambda team: team.share(lambda i: i, range(9)), 3, never_cancelled) for _ in range(5)]
    assert work == [list(range(9))] * 7
    assert threading.active_count() == alive


def test_two_evaluations_at_once() -> None:
    """Each has threads of its own: neither waits for the other."""
    both = threading.Barrier(4, timeout=SECONDS)
    results: list[list[int]] = []

    def evaluate() -> None:
        results.append(
            compute(lambda team: team.share(lambda i: both.wait() * 0 + i, range(2)), 2, never_cancelled)
        )

    threads = [threading.Thread(target=evaluate) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[0, 1]] * 2


def test_a_forked_process_has_threads_of_its_own() -> None:
    compute(lambda team: team.share(lambda i: i, range(4)), 2, never_cancelled)
    with warnings.catch_warnings():
        # To fork where there are threads is what is tested.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(int(SECONDS))
        os._exit(compute(lambda team: team.share(lambda i: i, range(4)), 2, never_cancelled) != [0, 1, 2, 3])
    assert os.waitpid(pid, 0)[1] == 0
