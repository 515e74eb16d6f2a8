"""What lies in a cache, read from its folder without disturbing a service that uses it."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from service.cache.files import is_open_in_a_process
from service.cache.folder import FILE_NAMES, take_lock
from service.cli.usage import BadUsage


@dataclass(frozen=True, slots=True)
class CachedFile:
    """One file."""

    name: str
    """Its checksum; of an interrupted download, the name of what is there of it."""
    kind: Literal["complete", "unfinished"]
    size: int
    """Bytes on the disk."""
    last_used: float
    """Seconds since the epoch."""
    in_use: bool
    """Whether a process has it open or mapped now."""

    def to_json(self) -> dict[str, Any]:
        """What `cache ls --json` prints of it."""
        used = datetime.fromtimestamp(self.last_used, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        return {
            "name": self.name,
            "kind": self.kind,
            "size": self.size,
            "last_used": used,
            "in_use": self.in_use,
        }


def read_contents(data_dir: Path) -> list[CachedFile]:
    """Every file, the last used first. Raises OSError."""
    found = [
        *_files(data_dir / "blobs", "complete"),
        *(file for file in _files(data_dir / "partial", "unfinished") if file.name.endswith(".part")),
    ]
    return sorted(found, key=lambda file: -file.last_used)


def is_served(data_dir: Path) -> bool:
    """Whether a service uses the cache now."""
    if not (data_dir / "lock").exists():
        return False
    lock = take_lock(data_dir)
    if lock is None:
        return True
    os.close(lock)
    return False


def find(files: list[CachedFile], beginning: str) -> CachedFile:
    """The complete file whose checksum begins so. Raises BadUsage where that is none, or not one."""
    complete = [file for file in files if file.kind == "complete" and file.name.startswith(beginning)]
    if len(complete) == 1 and beginning:
        return complete[0]
    many = f"{len(complete)} files' checksums begin so: give more of it"
    raise BadUsage(f"{beginning}: {many if complete else 'no file in the cache has such a checksum'}")


def _files(folder: Path, kind: Literal["complete", "unfinished"]) -> list[CachedFile]:
    found = []
    try:
        entries = list(os.scandir(folder))
    except FileNotFoundError:
        return []
    for entry in entries:
        if not FILE_NAMES[folder.name].fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        try:
            state = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # evicted in the meantime
            continue
        size = min(state.st_size, state.st_blocks * 512)
        in_use = is_open_in_a_process(Path(entry.path))
        found.append(CachedFile(entry.name, kind, size, state.st_mtime, in_use))
    return found
