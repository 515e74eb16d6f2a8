"""Replaces itself by a command, after preparing what the command inherits: signals, limits, closed descriptors.

`subprocess` has `preexec_fn` for this, which may deadlock in a process that has threads.
"""

import os
import resource
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Inherited:
    """What a command inherits; None leaves it as it is here."""

    ignores_ctrl_c: bool | None = None
    max_open_files: int | None = None
    """The hard limit; the soft one is half of it."""
    max_file_bytes: int | None = None
    """Stands for a full disk: a write fails midway, as it does there."""
    closed_descriptor: int | None = None


def prepared(command: Sequence[str | bytes], inherited: Inherited) -> list[str | bytes]:
    """The command line that prepares this and then runs `command`, under the same process id."""
    values = [str(getattr(inherited, field.name)) for field in fields(inherited)]
    return [sys.executable, "-ISE", __file__, *values, *command]


def _prepare(inherited: Inherited) -> None:
    if inherited.ignores_ctrl_c is not None:
        signal.signal(signal.SIGINT, signal.SIG_IGN if inherited.ignores_ctrl_c else signal.SIG_DFL)
    if (number := inherited.max_open_files) is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number // 2, number))
    if (number := inherited.max_file_bytes) is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, number))
    if inherited.closed_descriptor is not None:
        os.close(inherited.closed_descriptor)


if __name__ == "__main__":
    names = [field.name for field in fields(Inherited)]
    texts, command = sys.argv[1 : 1 + len(names)], sys.argv[1 + len(names) :]
    known = {"None": None, "True": True, "False": False}
    _prepare(Inherited(*(known[text] if text in known else int(text) for text in texts)))  # type: ignore[arg-type]
    os.execv(command[0], [os.fsencode(argument) for argument in command])
