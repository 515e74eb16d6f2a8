"""The cache's folder: its layout, the tag that marks it as this program's, and the lock of its one user.

directory/
├── CACHEDIR.TAG          marks the folder as ours, and as a cache for backup programs
├── lock                  held by the one service that uses the folder
├── blobs/<checksum>      complete, verified, durable: renamed here after fsync
├── urls/<checksum>.urls  digests of the URLs that have delivered it
├── partial/              files being downloaded; the note beside a file lets another attempt resume it
├── remove/<checksum>      a command asks the service to remove that file
├── leaderboards/          what `watch` has found, for the status page
├── uploads/               what `publish` keeps of an upload until its key has been handed over
└── commands/<random>/    the same again, for a command that runs beside the service; deleted at its end
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
import time
from pathlib import Path

_TAG_NAME = "CACHEDIR.TAG"
_TAG_SIGNATURE = "Signature: 8a477f597d28d172789f06886806bc55"  # https://bford.info/cachedir/
_TAG_OWNER = "# The data folder of soma-eval."
_TAG = f"{_TAG_SIGNATURE}\n{_TAG_OWNER} Whatever is in blobs, partial, urls, remove and commands may be deleted.\n"

FILE_NAMES = {
    "blobs": re.compile("[1-9A-HJ-NP-Za-km-z]{32,44}"),
    "partial": re.compile(r"[0-9A-Za-z]{16,44}\.(part|json|note|evicted)"),
    "urls": re.compile(r"[1-9A-HJ-NP-Za-km-z]{32,44}\.(urls|draft)"),
}
"""The names of the files in each folder of a cache, those that an earlier version has written included."""

_ABANDONED_SECONDS = 60.0
"""A command takes the lock of its new folder within this time."""


class CacheInUse(OSError):
    """Another service uses this folder."""


class ForeignFolder(OSError):
    """The folder contains files that are not this program's, which it must not delete."""


def lock(directory: Path) -> int:
    """Make the folder, mark it as ours, and lock it until the returned descriptor is closed.

    Raises CacheInUse, ForeignFolder, OSError.
    """
    claim_folder(directory)
    fd = take_lock(directory)
    if fd is None:
        raise CacheInUse("another soma-eval uses this data folder: give --data-dir another one")
    return fd


def take_lock(directory: Path) -> int | None:
    """A descriptor that holds the lock until it is closed; None where another process has it. Raises OSError."""
    fd = os.open(directory / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def claim_folder(directory: Path) -> None:
    """Make the folder and its tag. Raises ForeignFolder if it contains unknown files."""
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
    """Whether the folder has our tag and not only the general one of caches."""
    try:
        text = (directory / _TAG_NAME).read_text(errors="replace")
    except FileNotFoundError:
        return False
    return text.startswith(_TAG_SIGNATURE) and _TAG_OWNER in text


def _is_empty(directory: Path) -> bool:
    return set(os.listdir(directory)) <= {"lost+found"}


def _is_untagged_cache(directory: Path) -> bool:
    """Whether every file in the folder has a name that an earlier version gave it."""
    names = set(os.listdir(directory)) - {"lost+found"}
    return (
        "lock" in names
        and names <= {"lock", *FILE_NAMES}
        and (directory / "lock").lstat().st_size == 0
        and all(
            _holds_only(directory / folder, pattern)
            for folder, pattern in FILE_NAMES.items()
            if folder in names
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
    claim_folder(directory)
    parent = directory / "commands"
    parent.mkdir(mode=0o700, exist_ok=True)
    delete_abandoned_folders(parent)
    return Path(tempfile.mkdtemp(dir=parent))


def delete_abandoned_folders(parent: Path) -> None:
    """Delete the folders of commands that were killed."""
    with contextlib.suppress(FileNotFoundError):
        for folder in list(parent.iterdir()):
            with contextlib.suppress(OSError):
                if time.time() - folder.lstat().st_mtime > _ABANDONED_SECONDS:
                    _delete_if_unlocked(folder)


def _delete_if_unlocked(folder: Path) -> None:
    fd = take_lock(folder)
    if fd is not None:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)
