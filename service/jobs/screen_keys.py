"""Idempotency keys of screens: what each was first sent with. The answer itself comes from the kept results.

A screen is no job: its lines are sent while it runs, and are too many to store twice.
"""

import asyncio
import time

from sqlalchemy import Connection, delete, select

from service.errors import IdempotencyKeyReused
from service.jobs.database import Database
from service.jobs.inserts import insert_or_leave
from service.jobs.job_store import KEY_SECONDS
from service.jobs.schema import jobs, screen_keys
from service.jobs.state_key import StateKey


class ScreenKeys:
    """The keys that are kept, each for a day after it was first sent."""

    def __init__(self, database: Database, state_key: StateKey) -> None:
        self._database = database
        self._state_key = state_key

    async def claim(self, caller: bytes, key: str, body: bytes) -> None:
        """Remember durably that the caller's key stands for this body, unless it does so already.

        Raises IdempotencyKeyReused where it stands for another, or for a job; and InsufficientStorage or
        OutOfResources when the database cannot be used.
        """
        row = {
            "owner": self._state_key.hash("owner", caller),
            "idempotency_key": self._state_key.hash("key", key.encode()),
            "body_hash": await asyncio.to_thread(self._state_key.hash, "screen", body),  # which may be large
        }
        if not await self._database.run(lambda connection: _claim(connection, row)):
            raise IdempotencyKeyReused("this Idempotency-Key was sent with another request before")


def _claim(connection: Connection, row: dict[str, str]) -> bool:
    """Whether the key stands for this body now."""
    now = time.time()
    connection.execute(delete(screen_keys).where(screen_keys.c.created_at < now - KEY_SECONDS))
    same_key = [
        [table.c.owner == row["owner"], table.c.idempotency_key == row["idempotency_key"]]
        for table in (jobs, screen_keys)
    ]
    if connection.execute(select(jobs.c.id).where(*same_key[0])).first() is not None:
        return False
    connection.execute(insert_or_leave(connection, screen_keys), {**row, "created_at": now})
    body_hash = connection.execute(select(screen_keys.c.body_hash).where(*same_key[1])).scalar_one()
    return bool(body_hash == row["body_hash"])
