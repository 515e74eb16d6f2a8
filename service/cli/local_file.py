"""Is there a file to read at a path, and if not, what is there?"""

import stat
from pathlib import Path

from service.cli.question import BadUsage


def require_regular_file(path: Path, *, or_url: bool = False) -> None:
    """Raises BadUsage, which says what the path is, before anything is opened: reading a pipe could never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        url = ", and it is not an http(s) URL" if or_url else ""
        raise BadUsage(f"{path}: there is no such file{url}") from None
    except OSError as error:
        raise BadUsage(f"{path}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise BadUsage(f"{path}: this is a folder, not a weights file")
    if not stat.S_ISREG(mode):
        raise BadUsage(f"{path}: this is not a regular file: weights are read more than once")
