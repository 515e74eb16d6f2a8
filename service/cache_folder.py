"""What lies in the cache's directory: the lock, the sweep at the start, and how a file gets its name.

directory/
├── lock                  held by the one service that uses the directory
├── blobs/<checksum>      complete, verified, durable: renamed here after fsync
├── urls/<checksum>.urls  digests of the URLs that have delivered it
└── partial/              on their way in; a note beside a file lets another attempt go on
"""

import contextlib
import fcntl
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from service.checksum import is_checksum
from service.partial_file import read_note, sync_folder

MAX_URLS = 64
"""URLs remembered of one file; beyond that the oldest must deliver it once more."""


class CacheInUse(OSError):
    """Another service uses this directory."""


@dataclass(eq=False, slots=True)
class Entry:
    """One file in the cache: a blob, or the rest of a download that was broken off."""

    path: Path
    size: int
    last_used: float
    num_pins: int = 0
    urls: tuple[str, ...] = ()
    """Digests of the URLs that have delivered these very bytes, the latest last."""


def lock(directory: Path) -> int:
    """Make the directory and take its lock, which the descriptor holds. Raises CacheInUse, OSError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise CacheInUse("another soma-eval uses this data folder: give --data-dir another one") from None
    return fd


def sweep(blobs: Path, partials: Path, urls: Path) -> tuple[dict[str, Entry], dict[str, Entry]]:
    """Delete what nobody can use any more; what stays, by name."""
    for folder in (blobs, partials, urls):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    entries = {
        path.name: _entry_of(path)
        for path in _files_of(blobs)
        if is_checksum(path.name) and not path.is_symlink()
    }
    leftovers = {
        path.stem: _entry_of(path)
        for path in _files_of(partials)
        if path.suffix == ".part" and _can_be_gone_on_with(path)
    }
    kept = {entry.path.with_suffix(suffix) for entry in leftovers.values() for suffix in (".part", ".json")}
    kept |= {entry.path for entry in entries.values()} | {urls_file(urls, name) for name in entries}
    for path in (*_files_of(blobs), *_files_of(partials), *_files_of(urls)):
        if path not in kept:
            path.unlink()
    for name, entry in entries.items():
        entry.urls = _read_urls(urls_file(urls, name))
    return entries, leftovers


def _can_be_gone_on_with(path: Path) -> bool:
    return (
        is_checksum(path.stem) and not path.is_symlink() and read_note(path.with_suffix(".json")) is not None
    )


def _files_of(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_symlink() or not path.is_dir()]


def _entry_of(path: Path) -> Entry:
    found = path.lstat()
    return Entry(path, found.st_size, found.st_mtime)


def urls_file(folder: Path, checksum: str) -> Path:
    """Where the URLs that have delivered a file are noted."""
    return folder / f"{checksum}.urls"


def _read_urls(path: Path) -> tuple[str, ...]:
    try:
        return tuple(path.read_text().split())
    except (OSError, ValueError):  # then the file is downloaded once more
        return ()


def note_url(folder: Path, entry: Entry, digest: str) -> None:
    """Remember that this URL has delivered the file, also for after a restart where that can be written."""
    if digest in entry.urls:
        return
    entry.urls = (*entry.urls, digest)[-MAX_URLS:]
    draft = folder / f"{entry.path.name}.draft"
    with contextlib.suppress(OSError):
        draft.touch(mode=0o600)
        draft.write_text("\n".join(entry.urls))
        draft.rename(urls_file(folder, entry.path.name))


def touch(path: Path, size: int) -> bool:
    """Note the use of a file; False if it is not there any more, or not whole."""
    try:
        found = path.lstat()
        if not stat.S_ISREG(found.st_mode) or found.st_size != size:
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def delete(*paths: Path) -> None:
    """Delete what is there of these files."""
    for path in paths:
        path.unlink(missing_ok=True)


def write_blob(path: Path, destination: Path, data: bytes) -> None:
    """Write a file whose name, after any crash, has all of these bytes or is not there."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(fd)
        path.rename(destination)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    sync_folder(destination.parent)
