"""Who gets HTML: browsers, and nobody who does not ask for it."""

import pytest

from service.http_api.accept import prefers_html

CHROMIUM = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (CHROMIUM, True),
        ("text/html", True),
        ("TEXT/HTML;q=0.5", True),
        ("text/*", True),
        ("application/json;q=0.5, text/html;q=0.7", True),
        ("*/*", False),
        ("application/json", False),
        ("application/json, text/html", False),
        ("application/json, text/html;q=0.9", False),
        ("text/html;q=0, */*", False),
        ("text/html;q=x", False),
        ("text/event-stream", False),
        ("", False),
        (None, False),
    ],
)
def test_prefers_html(accept: str | None, expected: bool) -> None:
    headers = [] if accept is None else [(b"accept", accept.encode())]
    assert prefers_html({"type": "http", "headers": headers}) is expected
