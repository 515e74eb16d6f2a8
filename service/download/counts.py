"""What a downloader has done since it was made, in numbers that only rise."""

from collections import Counter
from typing import get_args

from service.errors import BlobKind, OutOfResources, ScoringError


class DownloadCounts:
    """Bytes received and downloads that failed."""

    def __init__(self) -> None:
        self.bytes_by_kind: dict[BlobKind, int] = dict.fromkeys(get_args(BlobKind), 0)
        """Bytes received, those of failed downloads included."""
        self.failures_by_code: Counter[str] = Counter()
        """Downloads that failed, by the code of the error; one that was cancelled is none."""

    def received(self, kind: BlobKind, num_bytes: int) -> None:
        """Bytes were received."""
        self.bytes_by_kind[kind] += num_bytes

    def failed(self, error: ScoringError | OSError) -> None:
        """A download failed; an OSError is one of this machine's disk."""
        self.failures_by_code[
            error.full_code if isinstance(error, ScoringError) else OutOfResources.code
        ] += 1
