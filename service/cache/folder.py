"""What the cache's folder holds: the tag, the lock, the sweep at the start, and small files.

directory/
├── CACHEDIR.TAG          says that the folder is ours, and to backup programs that it is a cache
├── lock                  held by the one service that uses the folder
├── blobs/<checksum>      complete, verified, durable: renamed here after fsync
├── urls/<checksum>.urls  digests of the URLs that have delivered it
├── partial/              on their way in; a note beside a file lets another attempt continue
└── commands/<random>/    the same again, for a command that runs beside the service; deleted at its end
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from service.cache.index import Entry
from service.download.partial_file import read_note

MAX_URLS = 64
"""URLs remembered of one file; beyond that the oldest must deliver it once more."""

_TAG_NAME = "CACHEDIR.TAG"
_TAG_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/
_TAG_OWNER = "# The data folder of soma-eval."
_TAG = f"{_TAG_SIGNATURE}\n{_TAG_OWNER} Whatever is in blobs, partial, urls and commands may be deleted.\n"

_BLOB = re.compile("[1-9A-HJ-NP-Za-km-z]{32,44}")
_DOWNLOAD = re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}\.part")
_OURS = {
    "blobs": _BLOB,
    "partial": re.compile(r"[0-9A-Za-z]{16,44}\.(part|json|note|evicted)"),
    "urls": re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}\.(urls|draft)"),
}
"""The names of the files that a cache without a tag, of an earlier version, has in its folders."""

_ABANDONED_SECONDS = 60.0
"""A command takes the lock of its new folder within this time."""


class CacheInUse(OSError):
    """Another service uses this folder."""


class ForeignFolder(OSError):
    """The folder holds files that are not this program's, which it must not delete."""


# -- the folder ------------------------------------------------------------------------------------------------


def lock(directory: Path) -> int:
    """Make the folder, mark it as ours, take its lock, which the descriptor holds.

    Raises CacheInUse, ForeignFolder, OSError.
    """
    mark_as_ours(directory)
    fd = _take_lock(directory)
    if fd is None:
        raise CacheInUse("another soma-eval uses this data folder: give --data-dir another one")
    return fd


def _take_lock(directory: Path) -> int | None:
    fd = os.open(directory / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def mark_as_ours(directory: Path) -> None:
    """Make the folder and its tag. Raises ForeignFolder where there are files that may be somebody else's."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise ForeignFolder(f"{directory} is a file: give --data-dir a folder") from None
    if _has_tag(directory):
        return
    if not _is_empty(directory) and not _is_untagged_cache(directory):
        raise ForeignFolder(
            f"{directory} holds files that are not soma-eval's, and its cache deletes what it does not know: "
            "give --data-dir a folder that is new or empty"
        )
    fd = os.open(directory / _TAG_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with open(fd, "w") as file:
        file.write(_TAG)


def _has_tag(directory: Path) -> bool:
    """Whether the folder has our tag: other programs mark their caches too."""
    try:
        text = (directory / _TAG_NAME).read_text(errors="replace")
    except FileNotFoundError:
        return False
    return text.startswith(_TAG_SIGNATURE) and _TAG_OWNER in text


def _is_empty(directory: Path) -> bool:
    return set(os.listdir(directory)) <= {"lost+found"}


def _is_untagged_cache(directory: Path) -> bool:
    """Whether every file in the folder is one that an earlier version has written."""
    names = set(os.listdir(directory)) - {"lost+found"}
    return (
        "lock" in names
        and names <= {"lock", *_OURS}
        and (directory / "lock").lstat().st_size == 0
        and all(
            _holds_only(directory / folder, pattern) for folder, pattern in _OURS.items() if folder in names
        )
    )


def _holds_only(folder: Path, names: re.Pattern[str]) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    with os.scandir(folder) as found:
        return all(names.fullmatch(item.name) and item.is_file(follow_symlinks=False) for item in found)


# -- folders of commands ---------------------------------------------------------------------------------------


def make_private_folder(directory: Path) -> Path:
    """A new folder inside the data folder for one command's own cache. Raises ForeignFolder, OSError."""
    mark_as_ours(directory)
    parent = directory / "commands"
    parent.mkdir(mode=0o700, exist_ok=True)
    delete_abandoned(parent)
    return Path(tempfile.mkdtemp(dir=parent))


def delete_abandoned(parent: Path) -> None:
    """Delete the folders of commands that were killed."""
    with contextlib.suppress(FileNotFoundError):
        for folder in list(parent.iterdir()):
            with contextlib.suppress(OSError):
                if time.time() - folder.lstat().st_mtime > _ABANDONED_SECONDS:
                    _delete_if_unlocked(folder)


def _delete_if_unlocked(folder: Path) -> None:
    fd = _take_lock(folder)
    if fd is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


# -- the sweep -------------------------------------------------------------------------------------------------


def sweep(directory: Path) -> list[Entry]:
    """Make the folders, delete what nobody can use any more; what stays."""
    blobs, partials, urls = (directory / name for name in _OURS)
    for folder in (blobs, partials, urls):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    entries = list(_sweep_blobs(blobs))
    names = {entry.name for entry in entries}
    _delete_others(urls, {f"{name}.urls" for name in names})
    leftovers = list(_find_leftovers(partials))
    kept = {entry.name for entry in leftovers} | {f"{Path(entry.name).stem}.json" for entry in leftovers}
    _delete_others(partials, kept)
    delete_abandoned(directory / "commands")
    return entries + leftovers


def _sweep_blobs(folder: Path) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for item in found:
            if item.is_file(follow_symlinks=False) and _BLOB.fullmatch(item.name):
                state = item.stat(follow_symlinks=False)
                yield Entry(folder, item.name, state.st_size, state.st_mtime)
            elif not item.is_dir(follow_symlinks=False):
                os.unlink(item.path)


def _find_leftovers(folder: Path) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for item in found:
            if item.is_file(follow_symlinks=False) and _DOWNLOAD.fullmatch(item.name):
                leftover = leftover_at(folder / item.name)
                if leftover is not None:
                    yield leftover


def leftover_at(path: Path) -> Entry | None:
    """The rest of a download that was interrupted, if another attempt can continue with it."""
    if read_note(path.with_suffix(".json")) is None:
        return None
    try:
        state = path.lstat()
    except FileNotFoundError:
        return None
    return Entry(path.parent, path.name, min(state.st_size, state.st_blocks * 512), state.st_mtime)


def _delete_others(folder: Path, kept: set[str]) -> None:
    with os.scandir(folder) as found:
        for item in found:
            if item.name not in kept and not item.is_dir(follow_symlinks=False):
                os.unlink(item.path)


# -- files -----------------------------------------------------------------------------------------------------


def note_of(entry: Entry, urls: Path) -> Path:
    """The small file that goes with an entry: the URLs of a blob, the note of a leftover."""
    if _BLOB.fullmatch(entry.name):
        return urls / f"{entry.name}.urls"
    return entry.path.with_suffix(".json")


def was_delivered(entry: Entry, urls: Path, digest: str) -> bool:
    """Whether this URL has delivered the file; reads the URLs from disk the first time."""
    if entry.urls is None:
        entry.urls = _read_urls(note_of(entry, urls))
    return digest in entry.urls


def _read_urls(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text().split())
    except (OSError, ValueError):  # then the file is downloaded once more
        return ()


def note_url(urls: Path, entry: Entry, digest: str) -> None:
    """Remember that this URL has delivered the file, also for after a restart where that can be written."""
    if was_delivered(entry, urls, digest):
        return
    entry.urls = (*(entry.urls or ()), digest)[-MAX_URLS:]
    draft = urls / f"{entry.name}.draft"
    with contextlib.suppress(OSError):
        draft.touch(mode=0o600)
        draft.write_text("\n".join(entry.urls))
        draft.rename(note_of(entry, urls))


def touch(path: Path, size: int) -> bool:
    """Note the use of a file; False if it is not there any more, or not whole."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size != size:
        return False
    with contextlib.suppress(OSError):  # on a disk that became read-only the file is as good as before
        os.utime(path)
    return True


def delete(*paths: Path) -> None:
    """Delete what is there of these files."""
    for path in paths:
        path.unlink(missing_ok=True)


def write_file(path: Path, data: bytes) -> None:
    """Write a new file that need not outlive this process. Nothing is left of it when that fails."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def is_held_by_a_process(path: Path) -> bool:
    """Whether any process has the file open or mapped: deleting it would free no room. Only Linux can tell.

    The system grants a write lease on a file only where nobody else has it open.
    """
    if sys.platform != "linux":
        return False
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # a process that opens the file now ends us otherwise
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


_SPARE_INODES = 4
"""What one download needs: the file, its notes."""
