"""API keys: the paths that need one, and the check. A browser's session stands for a key where pages are concerned."""

import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterable

from pydantic import SecretStr
from starlette.types import Scope

from service.errors import Unauthorized
from service.http_api.docs_page import STATIC_FILES
from service.http_api.sessions import Sessions, is_from_own_page

OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""These need no API key."""
SIGN_IN, SIGN_OUT = "/sign-in", "/sign-out"
PAGE_FILES = "/status/files/"
"""The style and the script of the status page, which the form that asks for the key has too."""
_CANCEL = re.compile(r"/jobs/[^/]+/cancel")
_PAGES = ("/docs", "/openapi.json", STATIC_FILES)


class ApiKeys:
    """The keys of this service; only their digests are kept."""

    def __init__(self, keys: Iterable[SecretStr]) -> None:
        given = [key.get_secret_value().encode() for key in keys]
        self._digests = [_digest(key) for key in given]
        self.sessions = Sessions(given)

    def check(self, scope: Scope) -> bytes:
        """The digest of the request's key; empty where no key is needed.

        Raises Unauthorized where the path needs a key and the request has no valid one.
        """
        if not self._digests or _is_open(scope["path"]):
            return b""
        given = _digest(_given_key(scope))
        matches = [hmac.compare_digest(given, known) for known in self._digests]
        if not any(matches) and not (_takes_session(scope) and self.sessions.is_valid(scope)):
            raise Unauthorized("send an API key this service knows as Authorization: Bearer")
        return given


def _is_open(path: str) -> bool:
    return path in (*OPEN_PATHS, SIGN_IN, SIGN_OUT) or path.startswith(PAGE_FILES)


def _takes_session(scope: Scope) -> bool:
    """Reading pages, and what their forms do, unless another site has the browser send it."""
    path = scope["path"]
    if scope["method"] in ("GET", "HEAD"):
        return path == "/" or path.startswith(("/status/", "/jobs/")) or _is_page(path)
    return scope["method"] == "POST" and _CANCEL.fullmatch(path) is not None and is_from_own_page(scope)


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
