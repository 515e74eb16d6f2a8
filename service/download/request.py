"""One file that is wanted, and which sizes it may have."""

from dataclasses import dataclass

from service.blob import BlobRef
from service.errors import BlobKind, BlobTooLarge, SizeMismatch


@dataclass(frozen=True, slots=True)
class DownloadRequest:
    """Everything, apart from the bytes themselves, that decides how a download ends."""

    blob: BlobRef
    kind: BlobKind
    max_bytes: int

    def check_size(self, size: int | None) -> None:
        """Accept the file's size (None: unknown). Raises BlobTooLarge, SizeMismatch."""
        if size is not None and size > self.max_bytes:
            raise BlobTooLarge(f"the file has more than {self.max_bytes} bytes", blob=self.kind)
        if size is not None and self.blob.size not in (None, size):
            raise SizeMismatch(f"the file has {size} bytes, not the number promised", blob=self.kind)
