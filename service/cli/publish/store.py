"""Where published weights go: what every kind of store can do."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol


class StoreFailed(Exception):
    """The store refused or did not answer; the message says why, without keys and queries."""


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of the object; parts are numbered from 1, and all but the last are of one size."""

    number: int
    offset: int
    content: bytes


class Store(Protocol):
    """One place for one object, which is sent in parts. Everything blocks, and raises StoreFailed or OSError."""

    name: str
    """What may be shown."""

    def size(self) -> int | None:
        """Bytes of the object that is there; None where there is none."""

    def begin(self) -> str:
        """Begin an upload; its ID."""

    def arrived(self, upload_id: str, part_bytes: int) -> Mapping[int, str] | None:
        """The tag of each part that is there, by its number; None where no such upload is in progress."""

    def put(self, upload_id: str, part: Part) -> str:
        """Send one part; its tag. May be called by several threads."""

    def complete(self, upload_id: str, tags: Mapping[int, str]) -> None:
        """Make the object of all its parts. Nothing that is there by then is overwritten, as far as the store can."""

    def abort(self, upload_id: str) -> None:
        """Remove the parts of an upload that will not be completed."""

    def read(self) -> Iterator[bytes]:
        """The object's bytes."""
