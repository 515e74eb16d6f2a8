"""The upload: one pass over the weights, which encrypts, hashes, and sends what has not arrived yet."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

from service.cli.encryption import Encrypted, Encrypting
from service.cli.publish.store import Part, Store, StoreFailed
from service.cli.publish.upload_record import UploadRecord
from service.cli.usage import CommandFailed
from service.daemon_thread import run_in_daemon_thread

MIN_PART_BYTES = 8 << 20
_MAX_PARTS = 10_000
_AT_ONCE = 4

OnBytes = Callable[[int], None]
"""Called with how many bytes have arrived."""


def part_bytes_for(size: int) -> int:
    """The size of a part, such that no store finds them too many."""
    pieces = -(-size // (_MAX_PARTS * MIN_PART_BYTES))
    return MIN_PART_BYTES * max(1, pieces)


async def upload(
    weights: Path, key: bytes, store: Store, record: UploadRecord, on_bytes: OnBytes
) -> Encrypted:
    """Encrypt, and send every part that the store does not have; what was encrypted. Memory stays flat.

    Cancelling leaves requests to themselves; what they send and is not in the record then is sent again.
    Raises StoreFailed, OSError, and CommandFailed where something else is there.
    """
    await run_in_daemon_thread(lambda: _settle(store, record, weights.stat().st_size))
    uploading = _Uploading(store, record, on_bytes)
    encrypting = Encrypting(weights, key, record.part_bytes)
    chunks = iter(encrypting)
    number = 0
    async with asyncio.TaskGroup() as group:
        while (
            uploading.failure is None and (chunk := await asyncio.to_thread(next, chunks, None)) is not None
        ):
            number += 1
            part = Part(number, (number - 1) * record.part_bytes, chunk)
            await uploading.slot()
            group.create_task(uploading.send(part))
    if uploading.failure is not None:
        raise uploading.failure
    if not record.is_sent and encrypting.result.plain_checksum == record.plain_checksum:
        await run_in_daemon_thread(lambda: store.complete(record.upload_id or "", record.tags))
        record.is_sent = True
        record.save()
    return encrypting.result


class _Uploading:
    """The parts on their way. After a failure the others are waited for: what they send is in the record then."""

    def __init__(self, store: Store, record: UploadRecord, on_bytes: OnBytes) -> None:
        self.failure: Exception | None = None
        self._store = store
        self._record = record
        self._on_bytes = on_bytes
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._recording = threading.Lock()
        self._num_bytes = 0

    async def slot(self) -> None:
        """Wait until another part may be held in memory."""
        await self._slots.acquire()

    async def send(self, part: Part) -> None:
        """Send it, unless it is there; the slot is free then."""
        try:
            if not self._record.is_sent and part.number not in self._record.tags and self.failure is None:
                await run_in_daemon_thread(lambda: self._put(part))
        except Exception as error:
            self.failure = self.failure or error
        finally:
            self._slots.release()
        self._num_bytes += len(part.content)
        self._on_bytes(self._num_bytes)

    def _put(self, part: Part) -> None:
        tag = self._store.put(self._record.upload_id or "", part)
        with self._recording:
            self._record.tags[part.number] = tag
            self._record.save()


def _settle(store: Store, record: UploadRecord, size: int) -> None:
    """Bring the record in line with what the store says, and begin an upload where there is none."""
    there = store.size()
    if record.upload_id is not None and not record.is_sent:
        arrived = store.arrived(record.upload_id, record.part_bytes)
        if arrived is not None:
            record.tags = {number: tag for number, tag in record.tags.items() if arrived.get(number) == tag}
            record.save()
            return
        record.is_sent = there == size  # completed, and the answer was lost
    if record.is_sent and there == size:
        return
    if there is not None:
        raise CommandFailed(
            f"{store.name} exists, and nothing is overwritten: remove it, or choose another name"
        )
    record.start_over()
    record.upload_id = store.begin()
    record.save()


def abort(store: Store, record: UploadRecord) -> None:
    """Remove what an upload that will not be completed has sent, as far as the store lets us."""
    if record.upload_id is not None and not record.is_sent:
        try:
            store.abort(record.upload_id)
        except (StoreFailed, OSError):
            return  # stores remove such parts after a while, or are told to
