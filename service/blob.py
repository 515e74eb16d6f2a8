"""A file that somebody has published: what every folder may know of it."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class BlobRef:
    """A file that somebody has published: where, and what they promised."""

    url: str = field(repr=False)
    checksum: str | None = None
    """Blake2b-256 of the bytes as published, Base58."""
    size: int | None = None
    """Bytes as published."""
