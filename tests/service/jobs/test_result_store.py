"""Kept results in a database: the same bits back, damaged rows, bounds, and a database that does not work."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select, update

from service.jobs.database import Database, sqlite_database
from service.jobs.result_store import ResultStore
from service.jobs.schema import results
from service.scoring.kept_results import KeptResult, ResultKey, ServedModel, SharedPassKey, same_bits
from tests.in_process_pool import eval_result
from tests.service.jobs.databases import OpenDatabase
from workers.errors import DecryptionFailed, NonFiniteResult, WeightsInvalid
from workers.types import DeviceKind, EvalJob, EvalResult

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
SECRET = b"canary-canary-canary-canary-cana"
ODD = replace(
    eval_result(),
    loss=0.1 + 0.2,
    sig_reg=5e-324,
    embedding=np.array([-0.0, 1e-45, 3.4028235e38, 0.1], dtype=np.float32),
    attends_to_future=True,
    device="cuda:0,cuda:1",
)


def key(seed: int = 0) -> ResultKey:
    job = EvalJob("w", "W", "d", 1, seed, SECRET, data_checksum="D")
    return ServedModel("1", {"embedding_dim": 4}, "float32").key(job, DeviceKind("cpu", ""), {"torch": "2"})


def store(database: Database, *, max_results: int = 100, max_age_seconds: float = 3600.0) -> ResultStore:
    return ResultStore(database, max_results=max_results, max_age_seconds=max_age_seconds)


async def find(kept: ResultStore, which: ResultKey) -> KeptResult | None:
    return (await kept.find([which])).get(which)


def trouble_of(database: Database) -> str | None:
    return database.trouble


async def set_last_used(database: Database, which: ResultKey, seconds_ago: float) -> None:
    statement = update(results).where(results.c.key == which.digest())
    await database.run(
        lambda connection: connection.execute(statement.values(last_used_at=time.time() - seconds_ago))
    )


async def test_a_result_comes_back_to_the_last_bit(database: Database) -> None:
    await store(database).keep({key(): KeptResult(ODD, NOW)})
    found = await find(store(database), key())
    assert found is not None
    assert isinstance(found.outcome, EvalResult)
    assert same_bits(found.outcome, ODD)
    assert repr(found.outcome) == repr(ODD)
    assert found.computed_at == NOW
    assert await find(store(database), key(seed=1)) is None


async def test_many_are_kept_and_found_at_once(database: Database) -> None:
    kept = store(database)
    many = {key(seed): KeptResult(eval_result(float(seed)), NOW) for seed in range(20)}
    await kept.keep(many)
    found = await kept.find([key(seed) for seed in range(10, 30)])
    assert {each: repr(result) for each, result in found.items()} == {
        key(seed): repr(many[key(seed)]) for seed in range(10, 20)
    }
    assert await kept.find([]) == {}
    await kept.keep({})


async def test_two_services_that_keep_the_same_at_once_both_succeed(open_database: OpenDatabase) -> None:
    services = [open_database() for _ in range(2)]
    for service in services:
        await service.start()
    many = [{key(seed): KeptResult(ODD, NOW) for seed in order} for order in (range(50), range(49, -1, -1))]
    await asyncio.gather(*(store(each).keep(some) for each, some in zip(services, many, strict=True)))
    for service in services:
        assert len(await store(service).find(list(many[0]))) == 50
        assert trouble_of(service) is None
        await service.close()


async def test_a_result_of_a_shared_pass_has_a_name_of_its_own(database: Database) -> None:
    kept, shared = store(database), SharedPassKey.of(key())
    await kept.keep({shared: KeptResult(ODD, NOW)})
    assert await find(kept, key()) is None
    assert list(await kept.find([key(), shared])) == [shared]


def test_the_name_of_a_result_stays_what_it_was() -> None:
    """Or everything that was kept before would be computed again."""
    assert key().digest() == "e8612d85d5bc90ea87d485bc2933c6d395a3d92b60e8fefb7963f98dbb603aed"


@pytest.mark.parametrize("kind", [DecryptionFailed, WeightsInvalid, NonFiniteResult])
async def test_a_verdict_comes_back(
    kind: type[DecryptionFailed | WeightsInvalid | NonFiniteResult], database: Database
) -> None:
    await store(database).keep({key(): KeptResult(kind("why"), NOW)})
    found = await find(store(database), key())
    assert found is not None
    assert isinstance(found.outcome, kind)
    assert found.outcome.detail == "why"


async def test_a_result_replaces_the_one_before_and_can_be_forgotten(database: Database) -> None:
    kept = store(database)
    for loss in (1.0, 2.0):
        await kept.keep({key(): KeptResult(eval_result(loss), NOW)})
    found = await find(kept, key())
    assert found is not None
    assert isinstance(found.outcome, EvalResult)
    assert found.outcome.loss == 2.0
    await kept.forget(key())
    assert await find(kept, key()) is None


def one_digit_less(payload: str) -> str:
    return payload.replace("0.30000000000000004", "0.3000000000000000")


DAMAGE: dict[str, Callable[[str], str]] = {
    "a digit": one_digit_less,
    "half of it": lambda payload: payload[: len(payload) // 2],
    "no JSON": lambda payload: "\ufffd",
    "no object": lambda payload: "[]",
    "no hash": lambda payload: json.dumps({**json.loads(payload), "check": None}),
    "empty": lambda payload: "",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_damaged_row_is_absent_and_is_replaced(damage: str, database: Database) -> None:
    kept = store(database)
    await kept.keep({key(): KeptResult(ODD, NOW)})
    payload = await database.read(
        lambda connection: connection.execute(select(results.c.payload)).scalar_one()
    )
    assert DAMAGE[damage](payload) != payload
    broken = update(results).values(payload=DAMAGE[damage](payload))
    await database.run(lambda connection: connection.execute(broken))
    assert await find(kept, key()) is None
    await kept.keep({key(): KeptResult(ODD, NOW)})
    assert await find(kept, key()) is not None


async def test_a_row_under_another_key_is_not_believed(database: Database) -> None:
    await store(database).keep({key(): KeptResult(ODD, NOW)})
    moved = update(results).values(key=key(seed=1).digest())
    await database.run(lambda connection: connection.execute(moved))
    assert await find(store(database), key(seed=1)) is None


async def test_what_was_not_used_for_the_longest_goes_first(database: Database) -> None:
    kept = store(database, max_results=2, max_age_seconds=1e9)
    for seed, seconds_ago in ((0, 3e6), (1, 4e6)):
        await kept.keep({key(seed): KeptResult(ODD, NOW)})
        await set_last_used(database, key(seed), seconds_ago)
    assert await find(kept, key(1)) is not None  # used now, so the other one is the oldest
    await kept.keep({key(2): KeptResult(ODD, NOW)})
    assert [await find(kept, key(seed)) is not None for seed in range(3)] == [False, True, True]


async def test_what_was_not_used_for_too_long_is_absent_and_goes(database: Database) -> None:
    kept = store(database, max_age_seconds=60.0)
    await kept.keep({key(): KeptResult(ODD, NOW)})
    await set_last_used(database, key(), 61.0)
    assert await find(kept, key()) is None
    await kept.keep({key(1): KeptResult(ODD, NOW)})
    keys = await database.read(lambda connection: connection.scalars(select(results.c.key)).all())
    assert list(keys) == [key(1).digest()]


async def test_the_decryption_key_is_nowhere_in_the_database(tmp_path: Path) -> None:
    database = sqlite_database(tmp_path / "state.sqlite")
    await database.start()
    await store(database).keep({key(): KeptResult(ODD, NOW)})
    written = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    await database.close()
    assert key().digest().encode() in written
    assert SECRET not in written
    assert SECRET.hex().encode() not in written


async def test_a_database_that_does_not_work_costs_no_request_and_is_left_alone_for_a_while(
    tmp_path: Path,
) -> None:
    (tmp_path / "state.sqlite").write_bytes(b"no database" * 1000)
    database = sqlite_database(tmp_path / "state.sqlite")
    await database.start()
    kept = store(database)
    await kept.keep({key(): KeptResult(ODD, NOW)})
    assert await find(kept, key()) is None
    assert database.trouble is not None
    (tmp_path / "state.sqlite").unlink()
    await kept.keep({key(): KeptResult(ODD, NOW)})  # within the pause, so not kept
    kept._retry_at = 0.0  # it is over
    assert await find(kept, key()) is None
    await kept.keep({key(): KeptResult(ODD, NOW)})
    assert await find(kept, key()) is not None
    await database.close()
