"""Whether a file is still the one it was: a number computed while a file changes belongs to no file."""

from dataclasses import dataclass
from pathlib import Path

from service.errors import ScoringError


class FileChanged(ScoringError):
    """A file on this machine was changed while it was evaluated; no number belongs to its old or its new bytes."""

    title = "A file changed while it was evaluated"
    retryable = True

    @property
    def full_code(self) -> str:
        return "file-changed"


class FileUnreadable(ScoringError):
    """A file on this machine cannot be read; that says nothing of its content."""

    title = "A file cannot be read"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, fault="service", blob="model")

    @property
    def full_code(self) -> str:
        return "file-unreadable"


@dataclass(frozen=True, slots=True)
class FileState:
    """What the file system says of a file; any write, truncation or replacement changes it."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def state_of(path: Path) -> FileState | None:
    """The state of a file now; None where there is none, or none that may be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return FileState(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
