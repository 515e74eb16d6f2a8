"""How long one request waits for one download, and whose fault it is when the file does not arrive in time.

Only the time in which bytes were being requested from the publisher counts against it: not the time in which the
download waited for a slot, and not this machine's own work on the disk.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.download.throughput import DownloadLimits, DownloadProgress
from service.egress.resolver import NOT_ONLINE
from service.errors import BlobKind, DownloadTimeout, OutOfResources

_FIRST_GRACE_SECONDS = 2.0
_MAX_GRACE_SECONDS = 10.0

T = TypeVar("T")


class SlotWanted(Exception):
    """The download is slow and others wait for its slot: it must release the slot, and may acquire one again."""

    def __init__(self, progress: DownloadProgress) -> None:
        super().__init__()
        self.progress = progress
        """How far it was then."""


class DownloadWatch:
    """Ends the wait for a download that is too slow. One per file of a request.

    A download that another request waits for too goes on for that request.
    """

    def __init__(
        self,
        kind: BlobKind,
        limits: DownloadLimits,
        *,
        most_bytes: int,
        request_started: float,
        seconds_left: Callable[[], float],
        is_online: Callable[[], Awaitable[bool]],
    ) -> None:
        """`most_bytes`: the size of the file at most. `request_started`: on the event loop's clock.

        `seconds_left`: what the request still has for its downloads. `is_online`: whether this machine reaches
        anything at all; while it does not, no publisher is to blame.
        """
        self._kind: BlobKind = kind
        self._limits = limits
        self._most_bytes = most_bytes
        self._request_started = request_started
        self._seconds_left = seconds_left
        self._is_online = is_online
        self._transfer_seconds = 0.0
        self._received_bytes = 0
        self._stalled_seconds = 0.0
        """Since the download was last as fast as it must be."""
        self._grace_seconds = _FIRST_GRACE_SECONDS
        self._timeout: asyncio.Timeout | None = None
        """Of the current attempt, like the fields below."""
        self._reason: DownloadTimeout | SlotWanted | None = None
        self._last: DownloadProgress | None = None
        self._slow_seconds = 0.0

    async def wait(self, fetching: Awaitable[T]) -> T:
        """Await one attempt, which calls `note`. Raises DownloadTimeout or SlotWanted where `note` decides so.

        Raises OutOfResources in place of a DownloadTimeout while this machine is not online.
        """
        self._begin_attempt()
        try:
            async with asyncio.timeout(None) as timeout:
                self._timeout = timeout
                return await fetching
        except TimeoutError:
            if self._reason is None:
                raise
            if isinstance(self._reason, DownloadTimeout) and not await self._is_online():
                raise OutOfResources(NOT_ONLINE) from None
            raise self._reason from None
        finally:
            self._timeout = None

    def _begin_attempt(self) -> None:
        self._reason = None
        self._last = None
        self._slow_seconds = 0.0

    def note(self, progress: DownloadProgress, *, is_slot_wanted: bool) -> None:
        """Take in the state of the download; called several times a second while bytes are requested."""
        if self._timeout is None or self._timeout.expired():
            return
        last, self._last = self._last or progress, progress
        seconds = max(0.0, progress.transfer_seconds - last.transfer_seconds)
        self._transfer_seconds += seconds
        self._received_bytes += max(0, progress.bytes_done - last.bytes_done)
        if progress.bytes_done == progress.bytes_total:
            return
        self._note_rate(progress, seconds)
        if self._stalled_seconds >= self._limits.base_timeout_seconds:
            self._end(DownloadTimeout("the server sent the file too slowly", blob=self._kind))
        elif self._seconds_left() <= 0 and self._is_too_slow(progress):
            self._end(
                DownloadTimeout(
                    "the server sends the file too slowly for the time that a request has", blob=self._kind
                )
            )
        elif is_slot_wanted and self._slow_seconds >= self._grace_seconds:
            # Longer each time, so that a server that needs some seconds for its first byte gets them in the end.
            self._grace_seconds = min(2 * self._grace_seconds, _MAX_GRACE_SECONDS)
            self._end(SlotWanted(progress))

    def _note_rate(self, progress: DownloadProgress, seconds: float) -> None:
        rate = progress.bytes_per_second
        is_stalled = rate < self._limits.min_bytes_per_second
        bytes_left = self._size(progress) - progress.bytes_done
        is_slow = is_stalled or bytes_left > rate * max(0.0, self._seconds_left())
        self._stalled_seconds = self._stalled_seconds + seconds if is_stalled else 0.0
        self._slow_seconds = self._slow_seconds + seconds if is_slow else 0.0

    def _is_too_slow(self, progress: DownloadProgress) -> bool:
        """Whether the file would not be complete even if its bytes had been requested all the time.

        False while bytes have not been requested for long enough to know.
        """
        request_seconds = asyncio.get_running_loop().time() - self._request_started
        if self._transfer_seconds < min(self._limits.base_timeout_seconds, request_seconds / 2):
            return False
        return self._received_bytes * request_seconds < self._size(progress) * self._transfer_seconds

    def _size(self, progress: DownloadProgress) -> int:
        return self._most_bytes if progress.bytes_total is None else progress.bytes_total

    def _end(self, reason: DownloadTimeout | SlotWanted) -> None:
        assert self._timeout is not None
        self._reason = reason
        self._timeout.reschedule(0.0)  # in the past: expires at once
