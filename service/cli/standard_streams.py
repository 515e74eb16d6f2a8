"""Standard streams that are closed, or that cannot encode what commands print: no reason to fail.

`sys.stdout` stays None where it was closed, so that a command may refuse to work for nobody.
"""

import codecs
import os
import sys

_PLAIN = {"✗": "x", "→": "->", "±": "+-", "…": "...", "·": "-", "–": "-", "●": "*"}


def prepare_standard_streams() -> None:
    """Called once, before anything is opened or printed."""
    for descriptor in (0, 1, 2):
        _open_if_closed(descriptor)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the life of the process)
    codecs.register_error("plain", _in_plain_characters)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="plain")


def _open_if_closed(descriptor: int) -> None:
    """Else the next file that is opened would get this number, and what is printed would land in it."""
    try:
        os.fstat(descriptor)
    except OSError:
        opened = os.open(os.devnull, os.O_RDWR)  # the lowest free number, and lower ones are open by now
        os.set_inheritable(opened, True)


def _in_plain_characters(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    return "".join(_PLAIN.get(char) or ascii(char)[1:-1] for char in text), error.end
