"""Sessions of browsers: a cookie that proves that an API key was given, without containing it.

The cookie is an expiry and its HMAC under a key that scrypt derives from the API key. So nothing is stored, a session
goes on after a restart, it ends when its API key is taken out of the settings, and a stolen cookie does not make it
cheap to guess an API key.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

COOKIE = "soma_eval_session"
SESSION_SECONDS = 30 * 86_400
"""Long, for a page on a wall."""


class Sessions:
    """The sessions that these API keys allow."""

    def __init__(self, keys: Iterable[bytes], clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since 1970."""
        self._signing_keys = {key: _signing_key(key) for key in keys}
        self._clock = clock

    def begin(self, api_key: bytes) -> str | None:
        """The value of a new session's cookie; None where the service does not know the key."""
        matches = [
            signing_key
            for known, signing_key in self._signing_keys.items()
            if hmac.compare_digest(_digest(known), _digest(api_key))
        ]
        if not matches:
            return None
        expiry = str(int(self._clock()) + SESSION_SECONDS)
        return f"{expiry}.{_signature(matches[0], expiry)}"

    def is_valid(self, scope: Scope) -> bool:
        """Whether the request has the cookie of a session that goes on."""
        expiry, _, signature = _cookie(scope).partition(".")
        if not (expiry.isascii() and expiry.isdecimal() and len(expiry) < 16 and signature.isascii()):
            return False
        matches = [
            hmac.compare_digest(_signature(key, expiry), signature) for key in self._signing_keys.values()
        ]
        return any(matches) and int(expiry) > self._clock()


def set_cookie(response: Response, value: str, scope: Scope) -> None:
    """Keep the session in the browser: out of the reach of scripts and of other sites."""
    response.set_cookie(
        COOKIE,
        value,
        max_age=SESSION_SECONDS,
        path=scope.get("root_path") or "/",
        secure=scope["scheme"] == "https",
        httponly=True,
        samesite="strict",
    )


def delete_cookie(response: Response, scope: Scope) -> None:
    """End the session in this browser."""
    response.delete_cookie(COOKIE, path=scope.get("root_path") or "/", httponly=True, samesite="strict")


def is_from_own_page(scope: Scope) -> bool:
    """Whether a browser sends the request for a page of this service, and not for one of another site.

    By Sec-Fetch-Site, which browsers send to https and to this machine; else by Origin.
    """
    headers = Headers(scope=scope)
    site = headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    return headers.get("origin") in [f"{scheme}://{headers.get('host')}" for scheme in ("http", "https")]


def _cookie(scope: Scope) -> str:
    parts = Headers(scope=scope).get("cookie", "").split(";")
    for name, _, value in (part.strip().partition("=") for part in parts):
        if name == COOKIE:
            return value
    return ""


def _signing_key(api_key: bytes) -> bytes:
    return hashlib.scrypt(api_key, salt=b"soma-eval session", n=1 << 14, r=8, p=1)


def _signature(signing_key: bytes, expiry: str) -> str:
    return hmac.new(signing_key, expiry.encode(), hashlib.sha256).hexdigest()


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
