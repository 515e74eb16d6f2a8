"""A browser's session: what is in the cookie, what it opens, and when it ends."""

from typing import Any

import pytest

from service.http_api.sessions import COOKIE, SESSION_SECONDS, Sessions, is_from_own_page

KEY = b"canary-of-the-session"


class Clock:
    """Seconds since 1970, as a test sets them."""

    seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


def scope_with(cookie: str, **headers: str) -> dict[str, Any]:
    pairs = [(b"cookie", f"other=1; {COOKIE}={cookie}; last=2".encode())]
    pairs += [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return {"type": "http", "headers": pairs}


def test_a_session_begins_with_a_known_key_alone() -> None:
    sessions = Sessions([b"first", KEY])
    assert sessions.begin(b"") is None
    assert sessions.begin(KEY + b"x") is None
    cookie = sessions.begin(KEY)
    assert cookie is not None
    assert KEY.decode() not in cookie
    assert sessions.is_valid(scope_with(cookie))


def test_a_session_outlives_the_process_and_not_its_key() -> None:
    cookie = Sessions([b"first", KEY]).begin(KEY) or ""
    assert Sessions([KEY]).is_valid(scope_with(cookie))
    assert not Sessions([b"first"]).is_valid(scope_with(cookie))
    assert not Sessions([]).is_valid(scope_with(cookie))


def test_a_session_ends() -> None:
    clock = Clock()
    sessions = Sessions([KEY], clock)
    cookie = sessions.begin(KEY) or ""
    clock.seconds += SESSION_SECONDS - 1
    assert sessions.is_valid(scope_with(cookie))
    clock.seconds += 1
    assert not sessions.is_valid(scope_with(cookie))


def test_a_forged_cookie_is_none() -> None:
    sessions = Sessions([KEY])
    expiry, _, signature = (sessions.begin(KEY) or "").partition(".")
    for forged in (
        "",
        ".",
        expiry,
        f"{expiry}.",
        f"{int(expiry) + 1}.{signature}",
        f"{expiry}.{signature[:-1]}",
        f"{expiry}.{signature}é",
        f"+{expiry}.{signature}",
        f"{'9' * 5000}.{signature}",
        f"٣.{signature}",
    ):
        assert not sessions.is_valid(scope_with(forged)), forged


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"sec_fetch_site": "same-origin"}, True),
        ({"sec_fetch_site": "same-site", "origin": "http://a:1", "host": "a:1"}, False),
        ({"sec_fetch_site": "cross-site"}, False),
        ({"sec_fetch_site": "none"}, False),
        ({"origin": "http://a:1", "host": "a:1"}, True),
        ({"origin": "https://a", "host": "a"}, True),
        ({"origin": "http://b", "host": "a"}, False),
        ({"origin": "null", "host": "a"}, False),
        ({"host": "a"}, False),
        ({}, False),
    ],
)
def test_which_requests_are_of_our_own_pages(headers: dict[str, str], expected: bool) -> None:
    assert is_from_own_page(scope_with("", **headers)) is expected
