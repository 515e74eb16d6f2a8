"""A new file that appears under its name only when it is complete. Nothing is ever overwritten."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.download.partial_file import sync_folder


@contextmanager
def named_when_done(target: Path) -> Iterator[Path]:
    """A path beside `target` to write to. At the end of the block that file gets its name, and is durable.

    If the block fails, or is interrupted, nothing is left. Raises OSError; FileExistsError where the name was
    taken in the meantime.
    """
    unfinished = target.with_name(f".soma-eval-{secrets.token_hex(8)}.partial")
    try:
        yield unfinished
        target.touch(exist_ok=False)  # takes the name: renaming alone would replace a file
        try:
            unfinished.replace(target)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        sync_folder(target.parent)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
