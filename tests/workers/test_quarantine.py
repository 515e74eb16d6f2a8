"""Which evaluations are kept from the workers, and for how long."""

import pytest

from workers.quarantine import Quarantine
from workers.types import EvalJob


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def job(checksum: str = "weights", data: str = "data") -> EvalJob:
    return EvalJob("path", checksum, data, 1, 0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quarantine(clock: Clock) -> Quarantine:
    return Quarantine(remember_seconds=100.0, max_entries=3, clock=clock)


def test_two_deaths_are_enough(quarantine: Quarantine) -> None:
    quarantine.record_death(job())
    assert not quarantine.holds(job())
    quarantine.record_death(job())
    assert quarantine.holds(job())


@pytest.mark.parametrize("other", [job(checksum="other"), job(data="other")])
def test_other_weights_or_data_are_free(quarantine: Quarantine, other: EvalJob) -> None:
    quarantine.record_death(job())
    quarantine.record_death(job())
    assert not quarantine.holds(other)


def test_a_result_acquits(quarantine: Quarantine) -> None:
    quarantine.record_death(job())
    quarantine.acquit(job())
    quarantine.record_death(job())
    assert not quarantine.holds(job())


def test_it_ends(quarantine: Quarantine, clock: Clock) -> None:
    quarantine.record_death(job())
    quarantine.record_death(job())
    clock.now = 100.0
    assert not quarantine.holds(job())


def test_its_memory_is_bounded(quarantine: Quarantine) -> None:
    for name in "abcd":
        quarantine.record_death(job(name))
        quarantine.record_death(job(name))
    assert [quarantine.holds(job(name)) for name in "abcd"] == [False, True, True, True]
