"""A folder as a store, such as one that a web server serves."""

import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from service.checksum import checksum_of
from service.cli.publish.store import Part, StoreFailed
from service.download.partial_file import sync_folder

_CHUNK_BYTES = 8 << 20


class FileStore:
    """One file, which gets its name when all of it is there."""

    def __init__(self, path: Path) -> None:
        self.name = f"file://{path}"
        self._path = path

    def size(self) -> int | None:
        """A folder, a device and a broken link count as something that is there."""
        return self._path.lstat().st_size if os.path.lexists(self._path) else None

    def begin(self) -> str:
        """Make the unfinished file beside the one to be."""
        upload_id = secrets.token_hex(8)
        descriptor = os.open(self._unfinished(upload_id), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.close(descriptor)
        return upload_id

    def arrived(self, upload_id: str, part_bytes: int) -> Mapping[int, str] | None:
        """Reads the whole file: what a crash has left of it is not known otherwise."""
        try:
            with self._unfinished(upload_id).open("rb") as file:
                contents = iter(lambda: file.read(part_bytes), b"")
                return {number: checksum_of(content) for number, content in enumerate(contents, start=1)}
        except FileNotFoundError:
            return None

    def put(self, upload_id: str, part: Part) -> str:
        """Write one part where it belongs."""
        descriptor = os.open(self._unfinished(upload_id), os.O_WRONLY)
        try:
            left, offset = memoryview(part.content), part.offset
            while left:
                written = os.pwrite(descriptor, left, offset)
                left, offset = left[written:], offset + written
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return checksum_of(part.content)

    def complete(self, upload_id: str, tags: Mapping[int, str]) -> None:
        """Give the file its name."""
        try:
            self._path.touch(exist_ok=False)  # takes the name: renaming alone would replace a file
        except FileExistsError:
            raise StoreFailed(f"{self._path} was made by somebody else in the meantime") from None
        self._unfinished(upload_id).replace(self._path)
        sync_folder(self._path.parent)

    def abort(self, upload_id: str) -> None:
        """Remove the unfinished file."""
        self._unfinished(upload_id).unlink(missing_ok=True)

    def read(self) -> Iterator[bytes]:
        """The file's bytes."""
        with self._path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk

    def _unfinished(self, upload_id: str) -> Path:
        return self._path.with_name(f".soma-eval-{upload_id}.partial")
