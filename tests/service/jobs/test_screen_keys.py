"""Idempotency keys of screens: what each stands for, whose it is, and for how long. On SQLite and on PostgreSQL."""

import asyncio
import time

import pytest
from sqlalchemy import update

from service.errors import IdempotencyKeyReused
from service.jobs.database import Database
from service.jobs.job import Job
from service.jobs.job_store import KEY_SECONDS, Identity, JobStore
from service.jobs.schema import screen_keys
from service.jobs.screen_keys import ScreenKeys
from service.jobs.state_key import StateKey
from tests.service.jobs.databases import OpenDatabase

KEY = StateKey(bytes(32))
BODY, OTHER_BODY = b"canary-body", b"another"


async def test_a_key_stands_for_its_first_body(database: Database) -> None:
    keys = ScreenKeys(database, KEY)
    for _ in range(2):
        await keys.claim(b"caller", "key", BODY)
    with pytest.raises(IdempotencyKeyReused):
        await keys.claim(b"caller", "key", OTHER_BODY)
    await keys.claim(b"caller", "other key", OTHER_BODY)
    await keys.claim(b"other caller", "key", OTHER_BODY)


async def test_it_does_so_after_a_restart(open_database: OpenDatabase) -> None:
    for body, is_reused in ((BODY, False), (BODY, False), (OTHER_BODY, True)):
        database = open_database()
        await database.start()
        try:
            await ScreenKeys(database, KEY).claim(b"", "key", body)
        except IdempotencyKeyReused:
            assert is_reused
        else:
            assert not is_reused
        await database.close()


async def test_of_two_services_that_claim_one_key_at_once_one_has_it(open_database: OpenDatabase) -> None:
    databases = [open_database() for _ in range(4)]
    for database in databases:
        await database.start()
    claims = [
        ScreenKeys(database, KEY).claim(b"", "key", b"body %d" % i) for i, database in enumerate(databases)
    ]
    outcomes = await asyncio.gather(*claims, return_exceptions=True)
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [
        *("IdempotencyKeyReused" for _ in range(3)),
        "NoneType",
    ]
    for database in databases:
        await database.close()


async def test_after_a_day_a_key_is_free(database: Database) -> None:
    keys = ScreenKeys(database, KEY)
    await keys.claim(b"", "key", BODY)
    long_ago = update(screen_keys).values(created_at=time.time() - KEY_SECONDS - 1)
    await database.run(lambda connection: connection.execute(long_ago))
    await keys.claim(b"", "key", OTHER_BODY)


async def test_a_key_of_a_job_is_none_of_a_screen_and_the_other_way_round(database: Database) -> None:
    keys, store = ScreenKeys(database, KEY), JobStore(database, "service", lease_seconds=9.0)
    owner = KEY.hash("owner", b"caller")
    of_job, of_screen = (
        Identity(owner, "body", KEY.hash("key", name)) for name in (b"of a job", b"of a screen")
    )
    await store.insert(Job("eval", 1, deadline=0.0), of_job, b"sealed")
    with pytest.raises(IdempotencyKeyReused):
        await keys.claim(b"caller", "of a job", BODY)
    await keys.claim(b"caller", "of a screen", BODY)
    with pytest.raises(IdempotencyKeyReused):
        await store.find(of_screen)
    assert await store.find(of_job) is not None


async def test_nothing_in_the_database_tells_key_body_or_caller(database: Database) -> None:
    await ScreenKeys(database, KEY).claim(b"canary-caller", "canary-key", BODY)
    rows = await database.read(lambda connection: connection.execute(screen_keys.select()).all())
    assert len(rows) == 1
    assert "canary" not in repr(rows)
    assert b"canary".hex() not in repr(rows)
