"""API keys: the paths that need one, and the check."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.types import Scope

from service.errors import Unauthorized
from service.http_api.docs_page import STATIC_FILES

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""These need no API key."""
_PAGES = ("/docs", "/openapi.json", STATIC_FILES)


class ApiKeys:
    """The keys of this service; only their digests are kept."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        self._digests = [_digest(key.get_secret_value().encode()) for key in keys]

    def check(self, scope: Scope) -> bytes:
        """The digest of the request's key; empty where no key is needed.

        Raises Unauthorized where the path needs a key and the request has no valid one.
        """
        if not self._digests or scope["path"] in OPEN_PATHS:
            return b""
        given = _digest(_given_key(scope))
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if not any(matches):
            raise Unauthorized("send an API key this service knows as Authorization: Bearer")
        return given


def challenge(path: str) -> str:
    """The WWW-Authenticate header of a 401: for a page, the one that makes a browser ask for the key."""
    return 'Basic realm="soma-eval: the API key as password", charset="UTF-8"' if _is_page(path) else "Bearer"


def _given_key(scope: Scope) -> bytes:
    """Empty, which is never a key, where none is given.

    HTTP Basic is accepted for reading pages alone: a browser also sends it for requests that another site makes.
    """
    authorization: bytes = dict(scope["headers"]).get(b"authorization", b"")
    scheme, _, credentials = authorization.partition(b" ")
    match scheme.lower():
        case b"bearer":
            return credentials.strip()
        case b"basic" if _is_page(scope["path"]) and scope["method"] in ("GET", "HEAD"):
            return _password(credentials.strip())
    return b""


def _password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _is_page(path: str) -> bool:
    return path in _PAGES or path.startswith(tuple(f"{page}/" for page in _PAGES))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
