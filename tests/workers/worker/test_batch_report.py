"""What is said of a batch while it is computed: nothing of a quick one, and of a slow one not too often."""

from collections.abc import Iterable

from workers.messages import BatchAdvanced
from workers.worker.batch_report import EVERY_SECONDS, SLOW_BATCH_SECONDS, BatchReport


class Clock:
    """Moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def reported(times: Iterable[float], report: BatchReport, clock: Clock) -> None:
    began = clock.now
    for seconds in times:
        clock.now = began + seconds
        report.advanced(seconds / 10)


def test_a_quick_batch_is_not_reported() -> None:
    sent: list[BatchAdvanced] = []
    clock = Clock()
    report = BatchReport(7, 3, sent.append, clock)
    reported([0.1, 0.5, SLOW_BATCH_SECONDS - 0.01], report, clock)
    report.batch_begins(4)
    reported([0.0, 0.9], report, clock)
    assert sent == []


def test_a_slow_batch_is_reported_now_and_then() -> None:
    sent: list[BatchAdvanced] = []
    clock = Clock()
    report = BatchReport(7, 3, sent.append, clock)
    report.batch_begins(4)
    reported([i / 100 for i in range(1000)], report, clock)
    assert {(each.task_id, each.index) for each in sent} == {(7, 4)}
    assert sent[0].fraction == SLOW_BATCH_SECONDS / 10
    assert len(sent) <= 9 / EVERY_SECONDS + 1
    assert [each.fraction for each in sent] == sorted(each.fraction for each in sent)
