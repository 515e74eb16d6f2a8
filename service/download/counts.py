"""What a downloader has done since it was made, in numbers that only rise."""

from typing import get_args

from service.errors import (
    BlobKind,
    BlobTooLarge,
    BlobUnavailable,
    ChecksumMismatch,
    DownloadTimeout,
    ForbiddenUrl,
    InsufficientStorage,
    InvalidUrl,
    OutOfResources,
    ScoringError,
    SizeMismatch,
)

_FAILURES: tuple[type[ScoringError], ...] = (
    *(InvalidUrl, ForbiddenUrl, BlobTooLarge, ChecksumMismatch, SizeMismatch, BlobUnavailable),
    *(DownloadTimeout, InsufficientStorage, OutOfResources),
)
_KINDS: tuple[BlobKind, ...] = get_args(BlobKind)


class DownloadCounts:
    """Bytes received and downloads that failed."""

    def __init__(self) -> None:
        self.bytes_by_kind = dict.fromkeys(_KINDS, 0)
        """Bytes received, those of failed downloads included."""
        self.failures_by_code = {error.code.format(blob=kind): 0 for error in _FAILURES for kind in _KINDS}
        """Downloads that failed, by the code of the error, 0 included; one that was cancelled is none."""

    def received(self, kind: BlobKind, num_bytes: int) -> None:
        """Bytes were received."""
        self.bytes_by_kind[kind] += num_bytes

    def failed(self, error: ScoringError | OSError) -> None:
        """A download failed; an OSError is one of this machine's disk."""
        code = error.full_code if isinstance(error, ScoringError) else OutOfResources.code
        self.failures_by_code[code] = self.failures_by_code.get(code, 0) + 1
