"""What happens to the cache's files at the start: complete ones are listed, useless ones deleted."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from service.cache.folder import FILE_NAMES, delete_abandoned_folders
from service.cache.index import PARTIAL_SUFFIX, Entry
from service.download.partial_note import note_path, read_note

_PARTIAL = re.compile(rf"[1-9A-HJ-NP-Za-km-z]{{32,44}}\{PARTIAL_SUFFIX}")


def sweep(directory: Path) -> list[Entry]:
    """Make the folders, and delete what can no longer be used; the entries of the rest."""
    blobs, partials, urls = (directory / name for name in FILE_NAMES)
    for folder in (blobs, partials, urls):
        folder.mkdir(mode=0o700, exist_ok=True)
        folder.chmod(0o700)
    entries = list(_sweep_blobs(blobs))
    _delete_others(urls, {f"{entry.name}.urls" for entry in entries})
    resumable = list(_find_resumable(partials))
    _delete_others(
        partials, {path.name for entry in resumable for path in (entry.path, note_path(entry.path))}
    )
    delete_abandoned_folders(directory / "commands")
    return entries + resumable


def _sweep_blobs(folder: Path) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for item in found:
            if item.is_file(follow_symlinks=False) and FILE_NAMES["blobs"].fullmatch(item.name):
                state = item.stat(follow_symlinks=False)
                yield Entry(folder, item.name, state.st_size, state.st_mtime)
            elif not item.is_dir(follow_symlinks=False):
                os.unlink(item.path)


def _find_resumable(folder: Path) -> Iterator[Entry]:
    with os.scandir(folder) as found:
        for item in found:
            if item.is_file(follow_symlinks=False) and _PARTIAL.fullmatch(item.name):
                entry = resumable_entry(folder / item.name)
                if entry is not None:
                    yield entry


def resumable_entry(path: Path) -> Entry | None:
    """The entry of a partial file that another attempt can resume; None for any other."""
    if read_note(note_path(path)) is None:
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
