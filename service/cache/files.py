"""The files of the cache, one at a time. Everything here blocks, so it runs in a thread where it matters."""

import contextlib
import errno
import fcntl
import os
import signal
import stat
import sys
from pathlib import Path

from service.cache.index import Entry
from service.download.partial_note import note_path

MAX_URLS = 64
"""URLs remembered for one file; a URL that was forgotten must deliver the file again."""
_SPARE_INODES = 4
"""What one download needs: the file and its notes."""


# -- which URLs have delivered a file --------------------------------------------------------------------------


def side_file_of(entry: Entry, urls: Path) -> Path:
    """The small file that goes with an entry: the URLs of a blob, the note of a partial file."""
    return note_path(entry.path) if entry.is_partial else urls / f"{entry.name}.urls"


def was_delivered_by(entry: Entry, urls: Path, digest: str) -> bool:
    """Whether the URL with this digest has delivered the file; reads the URLs from disk the first time."""
    if entry.urls is None:
        entry.urls = _read_urls(side_file_of(entry, urls))
    return digest in entry.urls


def _read_urls(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text().split())
    except (OSError, ValueError):  # then the file is downloaded again
        return ()


def remember_url(entry: Entry, urls: Path, digest: str) -> None:
    """Remember that the URL with this digest has delivered the file; after a restart too, if that can be written."""
    if was_delivered_by(entry, urls, digest):
        return
    entry.urls = (*(entry.urls or ()), digest)[-MAX_URLS:]
    draft = urls / f"{entry.name}.draft"
    with contextlib.suppress(OSError):
        draft.touch(mode=0o600)
        draft.write_text("\n".join(entry.urls))
        draft.rename(side_file_of(entry, urls))


# -- any file --------------------------------------------------------------------------------------------------


def touch(path: Path, size: int) -> bool:
    """Record the use of a file in its time; False if it no longer exists or has another size."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        return False
    with contextlib.suppress(OSError):  # on a disk that became read-only the file can still be used
        os.utime(path)
    return True


def delete(*paths: Path) -> None:
    """Delete those of the files that exist."""
    for path in paths:
        path.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file that is not needed after this process. If that fails, no part of it is left."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def is_open_in_a_process(path: Path) -> bool:
    """Whether any process has the file open or mapped, so that deleting it frees no space. Only known on Linux.

    The system grants a write lease on a file only if nobody else has it open.
    """
    if sys.platform != "linux":
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        # If a process opens the file now we are sent a signal, by default SIGIO, which would end this process.
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(fd)
    return False


def is_out_of_inodes(folder: Path) -> bool:
    """Whether the file system takes no more files, however small."""
    disk = os.statvfs(folder)
    return disk.f_files > 0 and disk.f_favail < _SPARE_INODES
