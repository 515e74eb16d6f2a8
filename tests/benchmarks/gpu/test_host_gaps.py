"""Idle time between kernels."""

import pytest

from benchmarks.gpu.time.host_gaps import Span, idle_gaps


@pytest.mark.parametrize(
    ("spans", "gaps"),
    [
        ([], []),
        ([(0.0, 1.0)], []),
        ([(0.0, 1.0), (1.0, 2.0)], []),
        ([(3.0, 4.0), (0.0, 1.0)], [2.0]),
        ([(0.0, 5.0), (1.0, 2.0), (6.0, 7.0)], [1.0]),  # a copy beside a longer kernel
    ],
)
def test_idle_gaps(spans: list[Span], gaps: list[float]) -> None:
    assert idle_gaps(spans) == gaps
