"""Which bytes of a file are requested next, and what each reply means for the rest. Pure: no network, no file.

The file is requested in parts. A reply is used for a part only if its claims fit what was requested; otherwise the
plan gives up range requests, or starts over because the bytes belong to another version of the file.
"""

from dataclasses import dataclass
from typing import NoReturn

from service.download.partial_note import Origin
from service.download.request import DownloadRequest
from service.download.responses import Broken, ReplyHead, valid_etag
from service.download.spans import Span


class StartOver(Exception):
    """The bytes that follow do not belong to those that are already written."""


@dataclass(eq=False, slots=True)
class Part:
    """What one request is for: the bytes from `start`, which moves as they are written, up to `end`."""

    start: int
    end: int | None
    """None: up to the end of the body."""
    is_done: bool = False

    @property
    def is_complete(self) -> bool:
        """Whether all of its bytes are written; False for the part of an empty file."""
        return bool(self.end) and self.start >= (self.end or 0)


class RangePlan:
    """The parts of one file. `begin` before each pass over the missing bytes."""

    def __init__(self, request: DownloadRequest, part_bytes: int) -> None:
        self._request = request
        self._part_bytes = part_bytes
        self._todo: list[Part] = []
        self._etag: str | None = None
        self.size = request.blob.size
        """Of the whole file; None until it is known."""
        self.uses_ranges = True
        """False after the server has shown that it does not honour range requests."""
        self.is_confirmed = False
        """Whether the server has honoured a range request, so that several may run at once."""

    # -- a pass over the missing bytes -----------------------------------------------------------------

    def resume(self, origin: Origin) -> bool:
        """Continue a file of which bytes are here. False if they cannot be part of the requested blob.

        Raises BlobTooLarge.
        """
        if origin.size is None or self._request.blob.size not in (None, origin.size):
            return False
        self._request.check_size(origin.size)
        self.size, self._etag = origin.size, valid_etag(origin.etag)
        return True

    def forget(self) -> None:
        """No byte is here any more."""
        self.size, self._etag = self._request.blob.size, None

    def begin(self, missing: list[Span]) -> None:
        """Request these spans; without a known size or with an empty file, at least its first bytes."""
        if self.size is None:
            self._todo = [Part(0, self._part_bytes)]
        elif self.size == 0:  # the server must still confirm that there is such a file
            self._todo = [Part(0, 0)]
        else:
            self._todo = [Part(start, end) for start, end in missing]

    @property
    def has_parts(self) -> bool:
        """Whether `next_part` has another one."""
        return bool(self._todo)

    def next_part(self) -> Part | None:
        """Take the next part, no longer than `part_bytes` where ranges can be requested."""
        if not self._todo:
            return None
        part = self._todo.pop(0)
        if self.uses_ranges and part.end is not None and part.end - part.start > self._part_bytes:
            middle = part.start + self._part_bytes
            self._todo.insert(0, Part(middle, part.end))
            part.end = middle
        return part

    def put_back(self, part: Part) -> None:
        """Leave the rest of a part to another connection."""
        if not part.is_complete:
            self._todo.insert(0, part)

    def headers_for(self, part: Part) -> dict[str, str]:
        """The headers of the request for a part; none where the whole file is requested."""
        is_whole = part.start == 0 and part.end == self.size
        if not self.uses_ranges or is_whole or part.end is None:
            return {}
        headers = {"Range": f"bytes={part.start}-{part.end - 1}"}
        if self._etag is not None and self._etag.startswith('"'):  # If-Range must not have a weak one
            headers["If-Range"] = self._etag
        return headers

    # -- replies ---------------------------------------------------------------------------------------

    @property
    def origin(self) -> Origin:
        """What is known of the file on the server."""
        return Origin(self.size, self._etag)

    def accept_range(self, head: ReplyHead, part: Part, *, asked: bool) -> None:
        """Fit a part to a 206. `asked`: whether a range was requested.

        Raises StartOver, Broken, BlobTooLarge, SizeMismatch.
        """
        found = head.content_range
        if found is None or not asked or part.end is None:
            self.give_up_ranges()
        size = self.size if found.size is None else found.size
        if size is None or found.first != part.start or not found.first <= found.last < min(part.end, size):
            self.give_up_ranges()
        if self._etag is not None and head.etag not in (None, self._etag):
            raise StartOver
        if self.size is None:
            self._learn_size(size)
            if part.end < size:
                self._todo.append(Part(part.end, size))
        elif size != self.size:
            self._request.check_size(size)
            raise StartOver
        self._etag = self._etag or head.etag
        self.is_confirmed = True
        sent_end, asked_end = found.last + 1, min(part.end, size)
        if sent_end < asked_end:
            self._todo.insert(0, Part(sent_end, asked_end))
        part.end = sent_end

    def accept_whole(self, head: ReplyHead, part: Part, *, asked: bool, is_first: bool) -> None:
        """Fit a part to a 200, which replaces all other parts. `is_first`: nothing is here, nothing else runs.

        Raises StartOver, BlobTooLarge, SizeMismatch.
        """
        if not is_first:
            is_unchanged = head.etag in (None, self._etag)  # then the server ignores ranges
            self.uses_ranges = self.uses_ranges and not is_unchanged
            raise StartOver
        if asked or head.refuses_ranges:
            self.uses_ranges = False
        self._todo = []
        if head.length is not None:
            self._learn_size(head.length)
        part.end = self.size
        self._etag = self._etag or head.etag

    def give_up_ranges(self) -> NoReturn:
        """Request the whole file from now on. Raises StartOver; Broken if that was so already."""
        if not self.uses_ranges:
            raise Broken("the server sent other bytes than were requested")
        self.uses_ranges = self.is_confirmed = False
        raise StartOver

    def _learn_size(self, size: int) -> None:
        self._request.check_size(size)
        self.size = size
