"""The models that are live, as `--against` names them: the network's manifests, or paths and URLs."""

import json
from pathlib import Path
from typing import Any

from service.checksum import is_checksum
from service.cli.input_file import kind_of, read_small_file, reason_of
from service.cli.keys import parse_key
from service.cli.score.question import Candidate
from service.cli.urls import is_url
from service.cli.usage import BadUsage

_MAX_BYTES = 16 << 20


def read_live_models(path: Path) -> tuple[Candidate, ...]:
    """A JSON list of manifests {url, checksum, size, decryption_key}, as the SDK's `get_model_manifests` gives them, or
    of paths and URLs; the URL of a manifest may be a path. Raises BadUsage, which says what is wrong where."""
    try:
        found = json.loads(read_small_file(path, _MAX_BYTES))
    except (OSError, BadUsage) as error:
        raise BadUsage(f"--against {path}: {reason_of(error)}") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or not found:
        raise BadUsage(f"--against {path}: it is not a JSON list of manifests or paths")
    return tuple(_live_model(path, item, number) for number, item in enumerate(found, start=1))


def _live_model(path: Path, found: Any, number: int) -> Candidate:
    try:
        return _parse({"url": found} if isinstance(found, str) else found)
    except BadUsage as error:
        reason = str(error)
    except (KeyError, TypeError, AttributeError):
        reason = "it is neither a manifest nor a path"
    raise BadUsage(f"--against {path}: model {number}: {reason}")


def _parse(found: dict[str, Any]) -> Candidate:
    url, checksum, size, key = found["url"], *(found.get(n) for n in ("checksum", "size", "decryption_key"))
    if not isinstance(url, str) or (not is_url(url) and kind_of(Path(url)) != "file"):
        raise BadUsage("its url is neither a URL nor a file that is there")
    if checksum is not None and not (isinstance(checksum, str) and is_checksum(checksum)):
        raise BadUsage("its checksum is not a Blake2b-256 digest in Base58")
    if size is not None and type(size) is not int:
        raise BadUsage("its size is no whole number")
    if key is not None and not isinstance(key, str):
        raise BadUsage("its decryption_key is not 32 bytes in Base58")
    return Candidate(url, None if key is None else parse_key(key), checksum=checksum, size=size, is_live=True)
