"""The ring of minutes that the status page draws."""

import pytest

from service.last_hour import NUM_MINUTES, Durations, LastHour


class Clock:
    """Seconds since 1970, as a test sets them."""

    def __init__(self) -> None:
        self.seconds = 6_000_000.0

    def __call__(self) -> float:
        return self.seconds


def test_what_ended_is_counted_in_its_minute_for_an_hour() -> None:
    clock = Clock()
    last_hour = LastHour(clock)
    last_hour.note("ok", None)
    last_hour.note("weights-invalid", "model_owner")
    last_hour.note("client-disconnected", None)  # nobody's fault, and not served
    clock.seconds += 60 * (NUM_MINUTES - 1)
    last_hour.note("ok", None)
    minutes = last_hour.minutes()
    assert [minute.num_served for minute in minutes] == [1, *[0] * (NUM_MINUTES - 2), 1]
    assert minutes[0].failures == {("model_owner", "weights-invalid"): 1}
    clock.seconds += 60
    assert [minute.num_served for minute in last_hour.minutes()] == [*[0] * (NUM_MINUTES - 2), 1, 0]


def test_minutes_without_events_take_no_memory() -> None:
    clock = Clock()
    last_hour = LastHour(clock)
    for _ in range(500):
        last_hour.note("ok", None)
        clock.seconds += 60
    assert len(last_hour._minutes) == NUM_MINUTES


def test_a_clock_that_is_set_back_loses_nothing() -> None:
    clock = Clock()
    last_hour = LastHour(clock)
    last_hour.note("ok", None)
    clock.seconds -= 3600
    last_hour.note("ok", None)
    clock.seconds += 3600
    assert sum(minute.num_served for minute in last_hour.minutes()) == 2


@pytest.mark.parametrize("seconds", [0.0015, 0.03, 1.0, 59.0, 3600.0])
def test_a_quantile_is_right_to_five_percent(seconds: float) -> None:
    durations = Durations()
    durations.add(seconds)
    assert durations.quantile(0.5) == pytest.approx(seconds, rel=0.05)


def test_quantiles_of_many() -> None:
    parts = [Durations(), Durations()]
    for number in range(1, 101):
        parts[number % 2].add(float(number))
    whole = Durations.all_of(parts)
    assert whole.quantile(0.5) == pytest.approx(50, rel=0.06)
    assert whole.quantile(0.99) == pytest.approx(99, rel=0.06)
    assert Durations().quantile(0.5) is None
    parts[0].add(0.0)
    assert Durations.all_of(parts).quantile(0.001) == 0.0
