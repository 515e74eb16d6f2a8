"""Reading files that a command line names: regular ones, and pipes up to a size; nothing that never ends."""

import itertools
import os
import select
import stat
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from service.cli.usage import BadUsage

_CHUNK_BYTES = 1 << 20


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes | None: ...


@dataclass(frozen=True, slots=True)
class PipeLimits:
    """How much is taken from a pipe, and how long nobody may be there to write to it."""

    max_bytes: int = 64 << 20
    writer_wait_seconds: float = 10.0


def kind_of(path: Path) -> str:
    """ "file", "folder", "fifo", "missing", or "device" for what never ends or cannot be read twice."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return "missing"
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "folder"
    return "fifo" if stat.S_ISFIFO(mode) else "device"


def require_regular_file(path: Path, *, or_url: bool = False) -> None:
    """Raises BadUsage, which says what the path is instead. Opens nothing: reading a pipe might never end."""
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


def read_small_file(path: Path, max_bytes: int, limits: PipeLimits | None = None) -> bytes:
    """All of a regular file or a FIFO, such as a key. Raises BadUsage without the file's name, or OSError."""
    kind = kind_of(path)
    if kind in ("folder", "device"):
        raise BadUsage(f"it is a {kind}, not a file")
    if kind == "fifo":
        limits = limits or PipeLimits()
        return b"".join(read_fifo(path, PipeLimits(max_bytes, limits.writer_wait_seconds)))
    with path.open("rb") as file:
        return b"".join(_bounded(_chunks(file), max_bytes))


def read_fifo(path: Path, limits: PipeLimits) -> Iterator[bytes]:
    """What is written to a FIFO until its writers close it.

    Raises BadUsage where nobody opens it to write, or too much comes; OSError.
    """
    # Opened without waiting: an open that waits for a writer would wait for ever where none comes.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        first: bytes | None = None
        if not poller.poll(limits.writer_wait_seconds * 1000):
            first = pipe.read(_CHUNK_BYTES)  # None: there is a writer, who has written nothing yet
            if first == b"":
                raise BadUsage(f"nobody has opened this FIFO to write for {limits.writer_wait_seconds:g} s")
        os.set_blocking(descriptor, True)
        yield from _bounded(itertools.chain([first or b""], _chunks(pipe)), limits.max_bytes)


def read_stdin(limits: PipeLimits) -> Iterator[bytes]:
    """All of standard input. Raises BadUsage where it is a keyboard or closed, or too much comes."""
    if sys.stdin is None:
        raise BadUsage("standard input is closed: pipe a file into it")
    if sys.stdin.isatty():
        raise BadUsage("standard input is the keyboard: pipe a file into it")
    yield from _bounded(_chunks(sys.stdin.buffer), limits.max_bytes)


def reason_of(error: Exception) -> str:
    """Why a file could not be read, in words that follow its name; the file's content is never quoted."""
    if isinstance(error, BadUsage):
        return str(error)
    return (error.strerror or str(error)) if isinstance(error, OSError) else "it is not text"


def _chunks(source: _Readable) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk


def _bounded(chunks: Iterable[bytes], max_bytes: int) -> Iterator[bytes]:
    size = 0
    for chunk in chunks:
        size += len(chunk)
        if size > max_bytes:
            raise BadUsage(f"there are more than {max_bytes:,} bytes in it")
        yield chunk
