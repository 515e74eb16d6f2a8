"""Held-out data: one file, every file of a folder, or what comes through a pipe."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from service.cli.input_file import PipeLimits, kind_of, read_fifo, read_stdin
from service.cli.score.file_state import FileChanged, FileState, state_of
from service.cli.usage import BadUsage
from service.errors import EmptyData

STDIN = "-"
_BACKUP_ENDINGS = ("~", ".bak", ".orig", ".rej", ".swp", ".swo", ".tmp", ".part", ".partial")
"""Of what editors, patch and downloads leave beside the file that is meant."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One file of held-out data."""

    name: str
    """As it was given; "-" for standard input."""
    path: Path
    size: int
    """Bytes, at least 1."""
    state: FileState | None = field(default=None, repr=False)
    """When its size was taken."""

    def check_unchanged(self) -> None:
        """Raises FileChanged where it is no longer the file it was when the command began."""
        if state_of(self.path) != self.state:
            raise FileChanged(f"the data was changed while it was evaluated: {self.name}", blob="data")

    def read(self) -> bytes:
        """Every byte. Raises OSError, or FileChanged."""
        content = self.path.read_bytes()
        self.check_unchanged()
        return content


@dataclass(frozen=True, slots=True)
class FoundData:
    """What `--data` names."""

    files: tuple[HeldOut, ...]
    """At least one."""
    num_skipped: int = 0
    """Hidden, backup and empty files of a folder, and what is no regular file."""


@contextmanager
def find_data(given: str, limits: PipeLimits | None = None) -> Iterator[FoundData]:
    """A file, the files of a folder and below it, a FIFO, or standard input; a pipe is kept on disk while inside.

    Raises BadUsage, EmptyData, or OSError.
    """
    path = Path(given)
    kind = "stdin" if given == STDIN else kind_of(path)
    if kind == "device":
        raise BadUsage(f"--data {given}: this is a device: give a file, a folder, or - for standard input")
    if kind == "missing":
        raise BadUsage(f"--data {given}: there is no such file or folder")
    if kind not in ("stdin", "fifo"):
        yield _files_of(path) if kind == "folder" else FoundData((_held_out(given, path),))
        return
    with tempfile.TemporaryDirectory(prefix="soma-eval-") as folder:
        limits = limits or PipeLimits()
        chunks = read_stdin(limits) if kind == "stdin" else read_fifo(path, limits)
        yield FoundData((_copied(given, chunks, Path(folder) / "data"),))


def _copied(given: str, chunks: Iterator[bytes], spool: Path) -> HeldOut:
    try:
        with spool.open("wb") as file:
            file.writelines(chunks)
    except BadUsage as error:
        raise BadUsage(f"--data {given}: {error}") from None
    return _held_out(given, spool)


def _files_of(folder: Path) -> FoundData:
    entries = sorted(entry for entry in folder.rglob("*") if not entry.is_dir())
    files = [entry for entry in entries if _is_data(entry, folder)]
    if not files:
        raise BadUsage(
            f"--data {folder}: there is no file with data in this folder, hidden and backup files aside"
        )
    return FoundData(tuple(_held_out(str(file), file) for file in files), len(entries) - len(files))


def _is_data(file: Path, folder: Path) -> bool:
    is_hidden = any(part.startswith(".") for part in file.relative_to(folder).parts)
    is_backup = file.name.endswith(_BACKUP_ENDINGS) or file.name.startswith("#")
    return not is_hidden and not is_backup and kind_of(file) == "file" and file.stat().st_size > 0


def _held_out(name: str, path: Path) -> HeldOut:
    with path.open("rb"):
        pass  # a file that cannot be read is reported now, before anything is evaluated
    state = state_of(path)
    if state is None:
        raise BadUsage(f"--data {name}: there is no such file")
    if state.size == 0:
        raise EmptyData(f"the data is empty: {name}", fault="client", blob="data")
    return HeldOut(name, path, state.size, state)
