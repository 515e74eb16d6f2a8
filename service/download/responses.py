"""What the head of a reply says of the bytes that follow it. None of it is trusted: see range_plan."""

import re
from dataclasses import dataclass

import httpx

from service.errors import BlobKind, BlobUnavailable

_RETRYABLE_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_ETAG = re.compile(r'(?:W/)?"[\x21\x23-\x7e]{0,254}"')
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)", re.IGNORECASE)
_LENGTH = re.compile("[0-9]{1,18}")


class Broken(Exception):
    """The reply is unusable; another attempt may succeed. The message says why and quotes nothing of the server's."""


@dataclass(frozen=True, slots=True)
class ContentRange:
    """The first and last byte in the body, and the size of the whole file (None: not stated)."""

    first: int
    last: int
    size: int | None


@dataclass(frozen=True, slots=True)
class ReplyHead:
    """The claims of one 200 or 206."""

    is_partial: bool
    length: int | None = None
    """Of the body, where a plain length is stated."""
    content_range: ContentRange | None = None
    """None where there is none or it makes no sense."""
    etag: str | None = None
    is_chunked: bool = False
    refuses_ranges: bool = False


def check_reply(response: httpx.Response, kind: BlobKind) -> ReplyHead:
    """Accept 200 and 206 of unencoded bytes. Raises BlobUnavailable; Broken."""
    status, headers = response.status_code, response.headers
    if status in _RETRYABLE_STATUS:
        raise Broken(f"the server answered with status {status}")
    if status not in (200, 206):
        raise BlobUnavailable(f"the server answered with status {status}", blob=kind)
    if headers.get("content-encoding", "identity").lower() not in ("identity", ""):
        raise BlobUnavailable("the server sent the file in a coding that was not requested", blob=kind)
    is_chunked = "transfer-encoding" in headers
    length = headers.get("content-length", "")
    return ReplyHead(
        is_partial=status == 206,
        length=int(length) if not is_chunked and _LENGTH.fullmatch(length) else None,
        content_range=_parse_content_range(headers),
        etag=valid_etag(headers.get("etag")),
        is_chunked=is_chunked,
        refuses_ranges=headers.get("accept-ranges") == "none",
    )


def _parse_content_range(headers: httpx.Headers) -> ContentRange | None:
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if match is None or headers.get("content-type", "").lower().startswith("multipart/"):
        return None
    first, last, size = match.groups()
    return ContentRange(int(first), int(last), None if size == "*" else int(size))


def valid_etag(text: str | None) -> str | None:
    """An ETag that may be sent back to the server as it is; None where the text is none."""
    return text if text is not None and _ETAG.fullmatch(text) else None
