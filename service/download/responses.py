"""What the reply to a GET says of the bytes that follow it. Nothing of it is trusted: see ranged_download."""

import re

import httpx

from service.errors import BlobKind, BlobUnavailable

_WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,254}"')
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)


class Broken(Exception):
    """The reply was no good; another try may succeed. Its message says why, and repeats no word of the server's."""


def check_reply(response: httpx.Response, kind: BlobKind) -> None:
    """Accept 200 and 206 of bytes as they are. Raises BlobUnavailable; Broken."""
    status = response.status_code
    if status in _WORTH_ANOTHER_TRY:
        raise Broken(f"the server answered with status {status}")
    if status not in (200, 206):
        raise BlobUnavailable(f"the server answered with status {status}", blob=kind)
    if response.headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise BlobUnavailable("the server sent the file in a coding nobody asked for", blob=kind)


def parse_content_range(response: httpx.Response) -> tuple[int, int, int | None] | None:
    """First and last byte and size (None: not told) of a 206; None where it makes no sense."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
    if match is None or response.headers.get("content-type", "").lower().startswith("multipart/"):
        return None
    first, last, total = match.groups()
    return int(first), int(last), None if total == "*" else int(total)


def content_length(response: httpx.Response) -> int | None:
    """The length that a reply claims for its body, where it claims one."""
    text = response.headers.get("content-length", "")
    if "transfer-encoding" in response.headers or not re.fullmatch("[0-9]{1,18}", text):
        return None
    return int(text)


def etag_of(response: httpx.Response) -> str | None:
    """The reply's ETag, where it has a good one."""
    return good_etag(response.headers.get("etag"))


def good_etag(text: str | None) -> str | None:
    """An ETag that may be sent back to the server as it is; None where the text is none."""
    return text if text is not None and _ETAG.fullmatch(text) else None
