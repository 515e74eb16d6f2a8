"""Telling URLs from paths, and what of a URL may be shown."""

import re
from urllib.parse import urlsplit

from service.cli.usage import BadUsage

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def is_url(text: str) -> bool:
    """Whether weights are to be fetched, rather than read from a file."""
    return text.partition("://")[0].lower() in ("http", "https")


def without_secrets(url: str) -> str:
    """A URL without user, password and query, which may let others in."""
    scheme, _, rest = url.partition("://")
    address = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = address.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def host_of(url: str) -> str:
    """The host of a service's URL. Raises BadUsage where it is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port  # raises where it is no number, or too large
        host = parts.hostname if is_url(url) else None
    except ValueError:
        host = None
    if host is None:
        raise BadUsage("--url is not an http(s) URL: give the address that `soma-eval serve` printed")
    return host


def refuse_far_service(url: str, instead: str) -> None:
    """For a service that is to read files of this machine. Raises BadUsage, which says what to do `instead`."""
    if host_of(url) not in _LOOPBACK:
        raise BadUsage(f"a service on another machine cannot read files of this one: {instead}")
