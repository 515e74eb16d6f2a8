"""The files that a node was sent: in a folder of its own, by checksum, verified, least recently used out first.

Every actor of the node uses the folder, each in its own process. A file that an actor holds is locked (flock), which
the system undoes when the actor dies, so that another one that makes room leaves it. A name in the folder always has
that checksum: a file is written under another name, and renamed once it is verified and on disk.
"""

import errno
import fcntl
import hashlib
import os
import re
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import base58

_NAME = re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}")
"""Base58 of 32 bytes: what arrives as a checksum never names anything outside the folder."""
_MAX_HELD = 4
"""Files that one actor keeps from being evicted: of the job it has, and of the next."""
_ABANDONED_SECONDS = 60.0
"""Age at which a partial file that nobody locks is left over."""


class DiskFull(Exception):
    """There is no room, even with nothing else there."""


class NotAsPublished(Exception):
    """What arrived does not have its checksum."""


class NodeFiles:
    """One actor's view of the folder. Blocking; one thread at a time."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._held: OrderedDict[str, int] = OrderedDict()
        """Descriptors with a shared lock, by checksum."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, checksum: str) -> Path:
        """Where the file lies, or would. Raises ValueError for what is no checksum."""
        if not _NAME.fullmatch(checksum):
            raise ValueError("not a checksum")
        return self._folder / checksum

    def hold(self, checksum: str, size: int) -> bool:
        """Whether the file is here; if so, it was used now, and stays for this actor's job."""
        if not _NAME.fullmatch(checksum):
            return False
        path = self.path(checksum)
        if checksum not in self._held:
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return False
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            self._held[checksum] = descriptor
        if not self._is_whole(path, self._held[checksum], size):
            os.close(self._held.pop(checksum))
            return False
        os.utime(path)
        self._held.move_to_end(checksum)
        while len(self._held) > _MAX_HELD:
            os.close(self._held.popitem(last=False)[1])
        return True

    @staticmethod
    def _is_whole(path: Path, descriptor: int, size: int) -> bool:
        """Whether what is locked is still the file of that name: it may have been evicted just before."""
        with suppress(OSError):
            ours, named = os.fstat(descriptor), os.stat(path)
            return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino) and ours.st_size == size
        return False

    def receive(self, checksum: str, size: int) -> "IncomingFile":
        """A file to be written from its first byte to its last, published or not, and closed.

        Raises DiskFull, and OSError where the disk does not work.
        """
        path = self.path(checksum)
        self._make_room(size)
        return IncomingFile(self._folder / f".{checksum}.{os.getpid()}", path, checksum, size)

    def close(self) -> None:
        """Hold nothing any more."""
        while self._held:
            os.close(self._held.popitem()[1])

    def _make_room(self, size: int) -> None:
        """Evict the least recently used that nobody holds until `size` more bytes are within the limit."""
        if size > self._max_bytes:
            raise DiskFull
        files = []
        for entry in os.scandir(self._folder):
            with suppress(FileNotFoundError):
                found = entry.stat()
                files.append((found.st_mtime, found.st_size, Path(entry.path)))
        total = sum(file_size for _, file_size, _ in files)
        for modified_at, file_size, path in sorted(files):
            is_left_over = path.name.startswith(".") and time.time() - modified_at > _ABANDONED_SECONDS
            wanted = total + size > self._max_bytes or is_left_over
            if wanted and path.name not in self._held and _unlink_if_free(path):
                total -= file_size
        if total + size > self._max_bytes:
            raise DiskFull


class IncomingFile:
    """A file on its way. Blocks come in order. Each method may raise DiskFull and OSError."""

    def __init__(self, partial: Path, path: Path, checksum: str, size: int) -> None:
        self._partial = partial
        self._path = path
        self._checksum = checksum
        self._size = size
        self._hash = hashlib.blake2b(digest_size=32)
        self.num_written = 0
        self._descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)
            if size:
                with _full_disk_named():
                    os.posix_fallocate(self._descriptor, 0, size)
        except BaseException:
            self.close()
            raise

    def write(self, block: bytes) -> None:
        """The next block. Raises NotAsPublished when it is too much."""
        if self.num_written + len(block) > self._size:
            raise NotAsPublished
        self._hash.update(block)
        view = memoryview(block)
        with _full_disk_named():
            while view:
                view = view[os.write(self._descriptor, view) :]
        self.num_written += len(block)

    def publish(self) -> None:
        """Give the file its name. Raises NotAsPublished when its bytes do not have its checksum."""
        if base58.b58encode(self._hash.digest()).decode() != self._checksum:
            raise NotAsPublished
        with _full_disk_named():
            os.fsync(self._descriptor)
        self._partial.rename(self._path)

    def close(self) -> None:
        """Leave nothing but what was published."""
        os.close(self._descriptor)
        self._partial.unlink(missing_ok=True)  # once it is published, it has another name


def _unlink_if_free(path: Path) -> bool:
    """Remove the file unless somebody holds it; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _full_disk_named() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull from None
        raise
