"""What is kept of an upload until its key has been handed over: enough to go on after an interruption.

It holds the key, so only its owner may read it. It lies in the data folder, in `uploads`. What it is worth: while it
is there, the same command sends only what has not arrived. When it is lost, nothing was committed with its key yet.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from service.cache.folder import claim_folder
from service.checksum import checksum_of
from service.cli.output_file import write_whole
from service.cli.usage import BadUsage

_FORMAT = "soma-eval upload 1"


@dataclass(slots=True)
class UploadRecord:
    """An upload of one file to one place. `save` after each change."""

    path: Path
    key: str = field(repr=False)
    """Base58."""
    plain_checksum: str
    """Of the weights that it encrypts: a key is for one file only."""
    part_bytes: int
    upload_id: str | None = None
    """None before the upload has begun."""
    tags: dict[int, str] = field(default_factory=dict)
    """Of each part that has arrived, by its number."""
    is_sent: bool = False
    """Whether the object is complete."""

    def save(self) -> None:
        """Write it durably. Raises OSError."""
        if not self.path.exists():
            os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        content = asdict(self) | {"format": _FORMAT}
        del content["path"]
        write_whole(self.path, json.dumps(content) + "\n")  # which keeps the permissions

    def start_over(self) -> None:
        """Forget what was sent; the key stays."""
        self.upload_id, self.tags, self.is_sent = None, {}, False

    def delete(self) -> None:
        """The upload is over, or never was."""
        self.path.unlink(missing_ok=True)


@contextmanager
def record_path(data_dir: Path, weights: Path, target: str) -> Iterator[Path]:
    """Where the record of this upload is, or will be; nobody else works on it within the block.

    Raises BadUsage where another command does, ForeignFolder, OSError.
    """
    claim_folder(data_dir)
    folder = data_dir / "uploads"
    folder.mkdir(mode=0o700, exist_ok=True)
    name = checksum_of(f"{weights.resolve()}\n{target}".encode(errors="surrogateescape"))
    lock = folder / f"{name}.lock"
    descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadUsage("another soma-eval publishes this very file to this very place now") from None
        record = folder / f"{name}.json"
        try:
            yield record
        finally:
            if not record.exists():
                lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def read_record(path: Path) -> UploadRecord | None:
    """What an interrupted upload has left; None where there is nothing. Raises BadUsage, OSError."""
    try:
        found = json.loads(path.read_bytes())
        if found.pop("format") != _FORMAT:
            raise ValueError("format")
        found["tags"] = {int(number): str(tag) for number, tag in found["tags"].items()}
        if set(found) | {"path"} != {member.name for member in fields(UploadRecord)}:
            raise ValueError("members")
        return UploadRecord(path, **found)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadUsage(
            f"{path}, the record of an interrupted upload, is damaged: remove it, and all is sent again"
        ) from None
