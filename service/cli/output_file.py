"""Files that commands write for people: whole or not at all, and never over a file that is not their own kind."""

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from service.cli.usage import BadUsage


def refuse_unsafe_output(
    path: Path, flag: str, inputs: Sequence[Path], is_own_kind: Callable[[Path], bool], kind: str
) -> None:
    """Check before any work that `path` may be written: a new file, or one of the same kind.

    Raises BadUsage where it is one of the `inputs`, a file of another kind, no regular file, or in no folder.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise BadUsage(f"{flag} {path}: there is no such folder")
    if not os.access(folder, os.W_OK):
        raise BadUsage(f"{flag} {path}: this folder is not writable")
    if not os.path.lexists(path):
        return
    if any(_is_same_file(path, other) for other in inputs):
        raise BadUsage(f"{flag} {path}: this is one of the files to read: choose another name")
    if not path.is_file():
        raise BadUsage(f"{flag} {path}: this is not a regular file: choose another name")
    if not is_own_kind(path):
        raise BadUsage(
            f"{flag} {path} exists and is not {kind}: it is not overwritten. Choose another name or remove it"
        )


def write_whole(path: Path, text: str) -> None:
    """Write a text file under a temporary name beside it, then rename: a reader never sees half of it.

    Raises OSError that names `path`; what was there before is kept then.
    """
    target = path.resolve()  # behind a symbolic link, the file it points to is replaced, not the link
    try:
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o666 & ~_umask()
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name[:64]}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(text.encode("utf-8"))
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(temporary).replace(target)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror or str(error), str(path)) from error


def _is_same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False


def _umask() -> int:
    current = os.umask(0o077)
    os.umask(current)
    return current
