"""Checksum and size of an object as its store gives it back."""

from collections.abc import Callable

from service.checksum import Hasher
from service.cli.encryption import Commitment
from service.cli.publish.store import Store


def commitment_in(store: Store, on_bytes: Callable[[int], None]) -> Commitment:
    """Read every byte. Raises StoreFailed, OSError."""
    hasher, size = Hasher(), 0
    for chunk in store.read():
        hasher.update(chunk)
        size += len(chunk)
        on_bytes(size)
    return Commitment(hasher.checksum(), size)
