"""The index of the cache: its running totals are the sums, whatever happened, and cost no look at all entries."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from service.cache.index import CacheIndex, Entry

NAMES = "abc"


@given(
    st.lists(
        st.tuples(st.sampled_from(["add", "remove", "pin", "unpin"]), st.sampled_from(NAMES)), max_size=40
    )
)
def test_the_totals_are_the_sums(steps: list[tuple[str, str]]) -> None:
    index = CacheIndex()
    entries = {name: Entry(Path(), name, 10 ** (8 * NAMES.index(name) // 2), 0.0) for name in NAMES}
    for step, name in steps:
        entry = entries[name]
        match step:
            case "add" if not index.holds(entry):
                index.add(entry)
            case "remove":
                index.remove(entry)
            case "pin":
                index.pin(entry)
            case "unpin" if entry.num_pins > 0:
                index.unpin(entry)
        listed = [entry for entry in entries.values() if index.holds(entry)]
        idle = [entry for entry in listed if entry.num_pins == 0]
        assert index.total_bytes == sum(entry.size for entry in listed)
        assert index.idle_bytes == sum(entry.size for entry in idle)
        first = index.least_recently_used()
        assert (first is None) is (not idle)
        assert first is None or first in idle
