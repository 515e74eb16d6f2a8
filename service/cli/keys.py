"""Decryption keys as a command line gives them: in Base58, in flags or in files."""

import os
from collections.abc import Sequence
from pathlib import Path

from service.cli.input_file import read_small_file, reason_of
from service.cli.usage import BadUsage
from service.download.partial_file import sync_folder
from service.errors import InvalidKey
from service.scoring.competition import parse_decryption_key

NO_KEY = "none"
"""In a list of keys: these weights are not encrypted."""
_MAX_KEY_FILE_BYTES = 4096


def parse_keys(keys: Sequence[str], key_files: Sequence[Path]) -> list[bytes | None]:
    """Keys in Base58 (or "none"), from flags or from files. Raises BadUsage, which does not say what they were."""
    if keys and key_files:
        raise BadUsage("--key and --key-file exclude each other: put every key into a file of its own")
    try:
        texts = list(keys) or [
            read_small_file(path, _MAX_KEY_FILE_BYTES).decode().strip() for path in key_files
        ]
    except (OSError, UnicodeDecodeError, BadUsage) as error:
        raise BadUsage(f"a key file cannot be read: {reason_of(error)}") from None
    return [None if text == NO_KEY else parse_key(text) for text in texts]


def parse_key(text: str) -> bytes:
    """The 32 bytes of a key in Base58. Raises BadUsage."""
    try:
        return parse_decryption_key(text)
    except InvalidKey as error:
        raise BadUsage(f"{error.detail}: copy it once more, all 43 or 44 characters of it") from None


def write_key_file(path: Path, text: str) -> None:
    """Write a key, durably, to a new file that only its owner may read. Raises OSError; nothing is left then."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{text}\n")
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
