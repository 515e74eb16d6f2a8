"""The pieces to screen, read one after the other: a file, the files of a folder, or lines of JSON."""

import base64
import binascii
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from service.blob import BlobRef
from service.checksum import is_checksum
from service.cli.input_file import kind_of
from service.cli.usage import BadUsage
from service.daemon_thread import run_in_daemon_thread
from service.errors import BlobTooLarge, InvalidRequest, ScoringError
from service.scoring.screen import Id, Piece

STDIN = "-"
_CHUNK_BYTES = 1 << 18
_MAX_URL_LENGTH = 8192

OnRead = Callable[[int], None]
"""Called for each piece, with the bytes that it takes in its source."""


@dataclass(frozen=True, slots=True)
class PieceSource:
    """What `--data` names."""

    kind: str
    """ "file", "folder", "lines" or "stdin"."""
    path: Path
    total_bytes: int | None
    """Of everything; None where only its end tells."""


def find_pieces(given: str) -> PieceSource:
    """Raises BadUsage."""
    path = Path(given)
    if given == STDIN:
        if sys.stdin is None or sys.stdin.isatty():
            raise BadUsage("standard input is the keyboard or closed: pipe JSON lines into it")
        return PieceSource("stdin", path, None)
    kind = kind_of(path)
    if kind == "folder":
        return PieceSource("folder", path, sum(file.stat().st_size for file in _files_of(path)))
    if kind != "file":
        reason = "there is no such file or folder" if kind == "missing" else f"this is a {kind}"
        raise BadUsage(f"--data {given}: {reason}; give a file, a folder, a .jsonl file, or -")
    return PieceSource("lines" if path.suffix == ".jsonl" else "file", path, path.stat().st_size)


async def read_pieces(source: PieceSource, max_bytes: int, on_read: OnRead) -> AsyncGenerator[Piece, None]:
    """One after the other: of what is not read yet nothing is in memory. Raises BadUsage or OSError."""
    pieces = _pieces_of(source, max_bytes, on_read)
    while (piece := await run_in_daemon_thread(lambda: next(pieces, None))) is not None:
        yield piece


def _pieces_of(source: PieceSource, max_bytes: int, on_read: OnRead) -> Iterator[Piece]:
    match source.kind:
        case "file":
            yield _piece_of_file(source.path.name, source.path, max_bytes, on_read)
        case "folder":
            for path in _files_of(source.path):
                yield _piece_of_file(str(path.relative_to(source.path)), path, max_bytes, on_read)
        case "lines":
            with source.path.open("rb", buffering=0) as file:
                yield from _pieces_of_lines(file.fileno(), max_bytes, on_read)
        case _:  # without Python's buffer, whose lock a reader would hold when the command ends
            yield from _pieces_of_lines(sys.stdin.fileno(), max_bytes, on_read)


def _files_of(folder: Path) -> Iterator[Path]:
    """Regular files of the folder and below it, in order; hidden ones are left out."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _piece_of_file(name: str, path: Path, max_bytes: int, on_read: OnRead) -> Piece:
    with path.open("rb") as file:
        data = file.read(max_bytes + 1)
    on_read(path.stat().st_size)
    return Piece(name, _too_large(max_bytes) if len(data) > max_bytes else data)


def _pieces_of_lines(descriptor: int, max_bytes: int, on_read: OnRead) -> Iterator[Piece]:
    for position, (line, num_bytes) in enumerate(_lines(descriptor, 2 * max_bytes + _CHUNK_BYTES)):
        if line is not None and not line.strip():
            continue
        on_read(num_bytes)
        yield Piece(position, _too_large(max_bytes)) if line is None else _piece_of_line(position, line)


def _lines(descriptor: int, most_bytes: int) -> Iterator[tuple[bytes | None, int]]:
    """Each line and its length with its end. None for one that is too long, which is read past and not kept."""
    kept, num_bytes, is_too_long = bytearray(), 0, False
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        first, *rest = chunk.split(b"\n")
        kept += first
        num_bytes += len(first)
        for each in rest:
            yield None if is_too_long else bytes(kept), num_bytes + 1
            kept, num_bytes, is_too_long = bytearray(each), len(each), False
        if len(kept) > most_bytes:
            kept, is_too_long = bytearray(), True
    if num_bytes:
        yield None if is_too_long else bytes(kept), num_bytes


def _piece_of_line(position: int, line: bytes) -> Piece:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return Piece(position, InvalidRequest("the line is not JSON"))
    if not isinstance(content, dict):
        return Piece(position, InvalidRequest("the line is not a JSON object"))
    name: Id = position
    if isinstance(content.get("id"), int | str) and not isinstance(content["id"], bool):
        name = content["id"]
    try:
        return Piece(name, _data_of(content))
    except ScoringError as error:
        return Piece(name, error)


def _data_of(content: dict[str, object]) -> bytes | BlobRef:
    given = [key for key in ("text", "data", "data_url") if isinstance(content.get(key), str)]
    if len(given) != 1:
        raise InvalidRequest("give one of text, data (in Base64) and data_url")
    value = str(content[given[0]])
    if given[0] == "text":
        return value.encode("utf-8", "surrogatepass")
    if given[0] == "data":
        try:
            return base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidRequest("data is not Base64") from None
    checksum, size = content.get("data_checksum"), content.get("data_size")
    if checksum is not None and not (isinstance(checksum, str) and is_checksum(checksum)):
        raise InvalidRequest("the checksum of data is not a Blake2b-256 digest in Base58")
    if size is not None and (type(size) is not int or size < 0):
        raise InvalidRequest("data_size is not a number of bytes")
    if len(value) > _MAX_URL_LENGTH:
        raise InvalidRequest("the URL of the data is too long")
    return BlobRef(value, checksum, size)


def _too_large(max_bytes: int) -> BlobTooLarge:
    return BlobTooLarge(f"the data has more than {max_bytes} bytes", blob="data", fault="client")
