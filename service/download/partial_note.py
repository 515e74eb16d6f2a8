"""The note beside a partial file that lets another attempt resume the download."""

import contextlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from service.download.spans import Span


@dataclass(frozen=True, slots=True)
class Origin:
    """What the server said of the file that the bytes belong to."""

    size: int | None = None
    etag: str | None = None


@dataclass(frozen=True, slots=True)
class PartialNote:
    """Which bytes of which file a partial file holds."""

    origin: Origin
    written: list[Span]


def note_path(partial: Path) -> Path:
    """Where the note of a partial file lies."""
    return partial.with_suffix(".json")


def read_note(path: Path) -> PartialNote | None:
    """What an earlier attempt noted; None where the note is missing or makes no sense."""
    try:
        note = json.loads(path.read_text())
        origin = Origin(int(note["total"]), None if note["etag"] is None else str(note["etag"]))
        written = [(int(start), int(end)) for start, end in note["done"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    edges = [edge for span in written for edge in span]
    if not edges or not 0 <= edges[0] <= edges[-1] <= (origin.size or 0) or edges != sorted(set(edges)):
        return None
    return PartialNote(origin, written)


def write_note(path: Path, note: PartialNote) -> None:
    """Replace the note. Where that fails, the next attempt starts from the beginning."""
    draft = path.with_suffix(".note")
    text = json.dumps({"total": note.origin.size, "etag": note.origin.etag, "done": note.written})
    with contextlib.suppress(OSError):
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(text)
        draft.rename(path)
