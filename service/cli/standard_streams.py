"""Writing to standard output and standard error, also where they are closed or cannot encode what is written.

`sys.stdout` stays None where it was closed, so that a command can refuse to work when nobody would see the result.
"""

import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from service.cli.printable import printable
from service.cli.usage import CommandFailed

_PLAIN = {"✗": "x", "→": "->", "±": "+-", "…": "...", "·": "-", "–": "-", "●": "*"}


def prepare_standard_streams() -> None:
    """To be called once, before anything is opened or printed."""
    for descriptor in (0, 1, 2):
        _open_if_closed(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    codecs.register_error("plain", _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="plain")


def complain(message: str) -> None:
    """Write one line to standard error."""
    sys.stderr.write(f"soma-eval: {printable(' '.join(message.split()))}\n")
    sys.stderr.flush()


def write_out(text: str) -> None:
    """Write to standard output and flush it. Raises CommandFailed where that is closed, full or a broken pipe."""
    with _failing_as_command() as stream:
        stream.write(text)
        stream.flush()


def write_past_buffer(text: str) -> None:
    """The same for a thread that may be left behind while it writes: it holds no lock that the exit would wait for."""
    with _failing_as_command() as stream:
        left = memoryview(text.encode(stream.encoding, stream.errors or "strict"))
        while left:
            left = left[os.write(stream.fileno(), left) :]


@contextmanager
def _failing_as_command() -> Iterator[TextIO]:
    if sys.stdout is None:
        raise CommandFailed("standard output cannot be written (it is closed)")
    try:
        yield sys.stdout
    except OSError as error:
        # What is left in the buffer goes nowhere: writing it at exit would fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise CommandFailed(f"standard output cannot be written ({error.strerror})") from error


def _open_if_closed(descriptor: int) -> None:
    """Open the null device in its place: else the next file opened would get this number, and what is printed."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, and lower ones are open by now
        os.set_inheritable(opened, True)


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(char) or ascii(char)[1:-1] for char in text), error.end
