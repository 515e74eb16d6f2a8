"""The tensors of a header, of which there may be millions: some thirty bytes each, while their entries stay text.

An entry is read once to be judged, and again when it is asked for.
"""

from array import array
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from .header_entries import DTYPE_BITS, MAX_SIZE, Entry, HeaderEntries, TensorInfo

SIZE_OVERFLOWS = MAX_SIZE
ENDS_WITHIN_BYTE = MAX_SIZE - 1
"""In place of a size in bytes. A real one is at most an eighth of these."""


class TensorTable(Mapping[str, TensorInfo]):
    """Every tensor by its name. Of a name that stands several times, the last entry counts."""

    def __init__(self, entries: HeaderEntries) -> None:
        """Raises WeightsInvalid when an entry describes no tensor. Where they lie is not looked at."""
        self._entries = entries
        positions, hashes, begins, ends, sizes = (array(kind) for kind in "IqQQQ")
        for position, name, entry in entries.tensors():
            positions.append(position)
            hashes.append(hash(name))
            begins.append(entry.begin)
            ends.append(entry.end)
            sizes.append(_num_bytes(entry))
        self._positions = np.frombuffer(positions, dtype=np.uint32)
        self.begins = np.frombuffer(begins, dtype=np.uint64)
        """By index, counted from the end of the header."""
        self.ends = np.frombuffer(ends, dtype=np.uint64)
        self.sizes = np.frombuffer(sizes, dtype=np.uint64)
        """By index: the bytes that dtype and shape make, SIZE_OVERFLOWS or ENDS_WITHIN_BYTE."""
        all_hashes = np.frombuffer(hashes, dtype=np.int64)
        self._by_hash = self._without_replaced(all_hashes, np.argsort(all_hashes, kind="stable"))
        self._sorted_hashes = all_hashes[self._by_hash]

    def in_order_of_offsets(self) -> NDArray[np.int64]:
        """The index of each tensor, sorted by where it lies."""
        return self._by_hash[np.lexsort((self.ends[self._by_hash], self.begins[self._by_hash]))]

    def item_at(self, index: int) -> tuple[str, TensorInfo]:
        """Name and place."""
        return self._name(index).decode(), self._entries.info(int(self._positions[index]))

    def __getitem__(self, name: str) -> TensorInfo:
        wanted = name.encode(errors="surrogatepass")
        first, last = (np.searchsorted(self._sorted_hashes, hash(wanted), side) for side in ("left", "right"))
        for index in self._by_hash[first:last]:
            if self._name(index) == wanted:
                return self._entries.info(int(self._positions[index]))
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (self._name(index).decode() for index in np.sort(self._by_hash))

    def __len__(self) -> int:
        return len(self._by_hash)

    def _without_replaced(self, hashes: NDArray[np.int64], by_hash: NDArray[np.int64]) -> NDArray[np.int64]:
        """The indices without those of entries that a later one of the same name replaces."""
        hashes = hashes[by_hash]
        is_repeated = np.zeros(len(by_hash), dtype=np.bool_)
        is_repeated[1:] = hashes[1:] == hashes[:-1]
        is_repeated[:-1] |= is_repeated[1:].copy()
        last = {self._name(index): index for index in np.sort(by_hash[is_repeated])}
        counts = np.ones(len(by_hash), dtype=np.bool_)
        counts[by_hash[is_repeated]] = False
        counts[list(last.values())] = True
        return by_hash[counts[by_hash]]

    def _name(self, index: int) -> bytes:
        return self._entries.name(int(self._positions[index]))


def _num_bytes(entry: Entry) -> int:
    bits = entry.num_elements * DTYPE_BITS[entry.dtype]
    if bits > MAX_SIZE:
        return SIZE_OVERFLOWS
    return ENDS_WITHIN_BYTE if bits % 8 else bits // 8
