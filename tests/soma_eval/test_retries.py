"""The policy of retries, on a clock of the test's own."""

import pytest

from soma_eval.errors import ConnectionFailed, QueueFull, SomaEvalError, WeightsInvalid
from soma_eval.retries import Retries, RetryPolicy

REFUSED = ConnectionFailed("refused", retryable=True)


def full(retry_after_seconds: float | None) -> QueueFull:
    return QueueFull("full", retryable=True, retry_after_seconds=retry_after_seconds)


def test_the_service_says_how_long_to_wait() -> None:
    assert Retries(RetryPolicy(), now=100.0).seconds_to_wait(full(7.0), now=101.0) == 7.0


def test_without_its_word_the_waits_grow() -> None:
    retries = Retries(RetryPolicy(max_tries=10, max_seconds=1e9), now=0.0)
    waits = [retries.seconds_to_wait(REFUSED, now=0.0) for _ in range(8)]
    assert all(0.5 * 2.0**i <= wait <= 2.0**i for i, wait in enumerate(waits))


@pytest.mark.parametrize("error", [WeightsInvalid("no"), ConnectionFailed("broken"), SomaEvalError("odd")])
def test_what_is_not_retryable_is_raised_at_once(error: SomaEvalError) -> None:
    with pytest.raises(type(error)) as raised:
        Retries(RetryPolicy(), now=0.0).seconds_to_wait(error, now=0.0)
    assert raised.value is error


def test_the_number_of_tries_is_bounded() -> None:
    retries = Retries(RetryPolicy(max_tries=3), now=0.0)
    retries.seconds_to_wait(full(0.0), now=0.0)
    retries.seconds_to_wait(full(0.0), now=0.0)
    with pytest.raises(QueueFull):
        retries.seconds_to_wait(full(0.0), now=0.0)


@pytest.mark.parametrize(("now", "wait"), [(0.0, 61.0), (55.0, 6.0), (61.0, 0.0)])
def test_the_total_time_is_bounded_and_no_wait_is_begun_in_vain(now: float, wait: float) -> None:
    retries = Retries(RetryPolicy(max_seconds=60.0), now=0.0)
    with pytest.raises(QueueFull):
        retries.seconds_to_wait(full(wait), now=now)


def test_a_call_that_advances_begins_anew() -> None:
    retries = Retries(RetryPolicy(max_tries=2, max_seconds=60.0), now=0.0)
    retries.seconds_to_wait(full(1.0), now=0.0)
    retries.restart(now=1000.0)
    assert retries.seconds_to_wait(full(1.0), now=1000.0) == 1.0
