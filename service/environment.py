"""The names that settings have in the environment, and what is wrong there before any setting is read."""

import difflib
import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from dotenv.parser import parse_stream

PREFIX = "SOMA_EVAL_"
ENV_FILE = Path(".env")
API_KEY_NAMES = ("SOMA_EVAL_API_KEYS", "SOMA_EVAL_API_KEY")
OTHER_NAMES = frozenset({"SOMA_EVAL_KEY", "SOMA_EVAL_DEBUG"})
"""Read by the command line itself; none is a setting."""
RENAMED_SETTINGS = {"download_floor_seconds": "download_base_timeout_seconds"}
"""Old name -> new name. The old variable and the old flag are deprecated and still work for one release."""


class BadEnvironment(Exception):
    """Settings cannot be read from what is there, or would be other than they look."""


def variables_of(setting: str) -> tuple[str, ...]:
    """The variables of a setting, in the order in which they count: its own name, then its old names."""
    old_names = [old for old, new in RENAMED_SETTINGS.items() if new == setting]
    return tuple(PREFIX + name.upper() for name in (setting, *old_names))


def check_environment(setting_names: Iterable[str]) -> list[str]:
    """Return a warning for each variable with our prefix that is deprecated or no setting. None quotes a value.

    Raises BadEnvironment where `.env` cannot be read, or API keys are set to nothing.
    """
    sources: dict[str, Mapping[str, str | None]] = {"the environment": os.environ, ".env": _read_env_file()}
    known = {PREFIX + name.upper() for name in setting_names} | OTHER_NAMES | set(API_KEY_NAMES)
    renamed = {variables_of(old)[0]: variables_of(new)[0] for old, new in RENAMED_SETTINGS.items()}
    warnings = []
    for source, variables in sources.items():
        for name, value in _ours(variables):
            if name in API_KEY_NAMES and not (value or "").strip():
                raise BadEnvironment(
                    f"{name} in {source} is empty, which would let everybody in: give a key, or leave it out"
                )
            if name in renamed:
                warnings.append(f"{name} in {source} is deprecated: use {renamed[name]}")
            elif name not in known:
                warnings.append(
                    f"{name} in {source} is no setting and changes nothing{_nearest(name, known)}"
                )
    return warnings


def _ours(variables: Mapping[str, str | None]) -> Iterator[tuple[str, str | None]]:
    """Upper and lower case are the same to the settings."""
    for name, value in variables.items():
        if name.upper().startswith(PREFIX):
            yield name.upper(), value


def _nearest(name: str, known: set[str]) -> str:
    endings = sorted(known_name.removeprefix(PREFIX) for known_name in known)
    close = difflib.get_close_matches(name.removeprefix(PREFIX), endings, n=1)
    return f"; {PREFIX}{close[0]} is" if close else ""


def _read_env_file() -> dict[str, str | None]:
    """Names and values; a folder of that name is somebody's virtual environment, and left alone."""
    try:
        mode = ENV_FILE.stat().st_mode
        if stat.S_ISDIR(mode):
            return {}
        if not stat.S_ISREG(mode):
            raise BadEnvironment(f"{ENV_FILE} in this folder is not a regular file")
        text = ENV_FILE.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadEnvironment(f"{ENV_FILE} in this folder cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BadEnvironment(f"{ENV_FILE} in this folder is not UTF-8 text") from None
    return {line.key: line.value for line in parse_stream(io.StringIO(text)) if line.key is not None}
