"""Kept results are given out under the numerics version: it must not stay when a bit, or a verdict, changes."""

import pytest

from tests.workers.v1.exact_numbers import compute_portably, platform_name, recorded
from workers.v1 import NUMERICS_VERSION

NEW_VERSION = (
    "workers.v1 gives other numbers, or refuses other weights, than were recorded for its NUMERICS_VERSION. "
    "If that is meant, give it a new value and run `python -m tests.workers.v1.exact_numbers --record`."
)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_the_numerics_version_names_these_very_bits() -> None:
    """Compares with bits recorded for this version, of every short golden case and every odd weights file.

    The bits of a CPU depend on its instructions, so those of an ordinary run are nobody else's. Here all libraries use
    the oldest instructions and one thread (see exact_numbers), which gives the same bits on all CPUs of one vendor, and
    runs the same code of ours as an ordinary run on a CPU. Beside that:
    - Decimals, such as the golden tests compare, would let a change of the last bits pass.
    - A hash of the sources would fail with each comment, and people would learn to raise the version unread.
    - What only a GPU runs (tf32, bf16, float32-split, its micro-batches) is not covered: raise the version by hand.
    """
    bits = recorded().get(NUMERICS_VERSION)
    assert bits is not None, NEW_VERSION
    if platform_name() not in bits:
        pytest.skip(f"no bits are recorded for {platform_name()}")
    assert compute_portably() == bits[platform_name()], NEW_VERSION


def test_a_version_that_is_recorded_is_unlike_every_other() -> None:
    """Two versions with the same bits would only cost the results that are kept."""
    by_version = [bits[platform] for bits in recorded().values() for platform in sorted(bits)[:1]]
    assert len({str(sorted(bits.items())) for bits in by_version}) == len(by_version)
