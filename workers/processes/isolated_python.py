"""How another Python is started: with this process's import path, and without running code of any other folder."""

import os
import sys

_SECRET_PREFIXES = ("SOMA_EVAL_", "OTEL_", "RAY_")
"""Of the service's settings, of where traces go, and of a Ray cluster, whose token lets its bearer run code there."""


def _current_folder() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return "/"


_START_FOLDER = _current_folder()
"""Where this process was started; the folder may be gone when a path is needed."""


def absolute_path(path: str) -> str:
    """The path as it was meant when this process started: other processes are started in `/`."""
    return os.path.join(_START_FOLDER, path)


def python_command(*arguments: str) -> list[str]:
    """The command of this Python with these arguments; `-P` keeps the current folder out of its import path."""
    return [sys.executable, "-P", *arguments]


def python_environment() -> dict[str, str]:
    """This process's environment with its import path, and without settings that may be secret."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_SECRET_PREFIXES)}
    environment["PYTHONPATH"] = os.pathsep.join(absolute_path(path) for path in sys.path)
    return environment
