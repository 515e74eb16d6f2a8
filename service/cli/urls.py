"""Telling URLs from paths, and what of a URL may be shown."""

import re


def is_url(text: str) -> bool:
    """Whether weights are to be fetched, rather than read from a file."""
    return text.partition("://")[0].lower() in ("http", "https")


def without_secrets(url: str) -> str:
    """A URL without user, password and query, which may let others in."""
    scheme, _, rest = url.partition("://")
    address = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = address.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
