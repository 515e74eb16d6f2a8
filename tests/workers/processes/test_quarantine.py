"""Which evaluations are kept from the workers, for how long, and as whose fault."""

import pytest

from workers.errors import EvaluationCrashesWorker, OutOfMemory, WorkerCrashed
from workers.processes.quarantine import Quarantine
from workers.processes.worker_death import Cause
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
    return Quarantine(remember_seconds=100.0, wait_seconds=10.0, max_entries=3, clock=clock)


def fault(quarantine: Quarantine, worker: int, of: EvalJob | None = None, num_alike: int = 2) -> None:
    quarantine.record_death(of or job(), worker, num_alike, Cause.FAULT)


def blame(quarantine: Quarantine, of: EvalJob | None = None) -> None:
    for worker in (0, 1):
        fault(quarantine, worker, of)
        quarantine.device_passed(worker)


def test_faults_of_two_sound_devices_count(quarantine: Quarantine) -> None:
    fault(quarantine, 0)
    quarantine.device_passed(0)
    assert quarantine.refusal(job()) is None
    fault(quarantine, 1)
    assert quarantine.refusal(job()) is None
    assert quarantine.awaits_test(job())
    quarantine.device_passed(1)
    assert isinstance(quarantine.refusal(job()), EvaluationCrashesWorker)


def test_data_is_known_again_at_another_path(quarantine: Quarantine) -> None:
    blame(quarantine, EvalJob("path", "weights", "first path", 1, 0, data_checksum="data"))
    assert (
        quarantine.refusal(EvalJob("path", "weights", "second path", 1, 0, data_checksum="data")) is not None
    )
    assert quarantine.refusal(EvalJob("path", "weights", "second path", 1, 0, data_checksum="other")) is None


def test_two_faults_of_one_device_count_only_where_there_is_one(quarantine: Quarantine) -> None:
    for _ in range(2):
        fault(quarantine, 0, job("a"), num_alike=2)
        fault(quarantine, 0, job("b"), num_alike=1)
        quarantine.device_passed(0)
    assert quarantine.refusal(job("a")) is None
    assert isinstance(quarantine.refusal(job("b")), EvaluationCrashesWorker)


def test_a_fault_of_a_device_that_fails_its_test_does_not_count(quarantine: Quarantine) -> None:
    fault(quarantine, 0)
    quarantine.device_failed(0)
    quarantine.device_passed(0)  # later, when it was repaired
    fault(quarantine, 1)
    quarantine.device_passed(1)
    assert quarantine.refusal(job()) is None
    assert not quarantine.awaits_test(job())


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.FAULT])
def test_no_other_end_counts_however_often(cause: Cause, quarantine: Quarantine) -> None:
    for worker in range(100):
        quarantine.record_death(job(), worker, 100, cause)
        quarantine.device_passed(worker)
    refusal = quarantine.refusal(job())
    assert type(refusal) is (OutOfMemory if cause is Cause.KILLED else WorkerCrashed)


def test_an_evaluation_whose_workers_are_lost_waits(quarantine: Quarantine, clock: Clock) -> None:
    for num_deaths in range(4):
        assert quarantine.refusal(job()) is None, num_deaths
        quarantine.record_death(job(), 0, 1, Cause.KILLED)
    assert quarantine.refusal(job()) is not None
    clock.now = 10.0
    assert quarantine.refusal(job()) is None


@pytest.mark.parametrize("other", [job(checksum="other"), job(data="other")])
def test_other_weights_or_data_are_free(quarantine: Quarantine, other: EvalJob) -> None:
    blame(quarantine)
    assert quarantine.refusal(other) is None


def test_a_result_clears(quarantine: Quarantine) -> None:
    fault(quarantine, 0)
    quarantine.device_passed(0)
    quarantine.clear(job())
    fault(quarantine, 1)
    quarantine.device_passed(1)
    assert quarantine.refusal(job()) is None


def test_a_killed_worker_makes_no_device_suspicious(quarantine: Quarantine) -> None:
    quarantine.record_death(job(), 0, 3, Cause.KILLED)
    quarantine.record_death(job(), 1, 3, Cause.ERROR)
    quarantine.record_death(job(), 2, 3, Cause.HUNG)
    assert quarantine.suspicious_workers(job()) == {1, 2}


def test_it_ends(quarantine: Quarantine, clock: Clock) -> None:
    blame(quarantine)
    clock.now = 100.0
    assert quarantine.refusal(job()) is None


def test_its_memory_is_bounded(quarantine: Quarantine) -> None:
    for name in "abcd":
        blame(quarantine, job(name))
    assert [quarantine.refusal(job(name)) is None for name in "abcd"] == [True, False, False, False]
