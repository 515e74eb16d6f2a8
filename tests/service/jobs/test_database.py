"""The database: transactions, migrations, and trouble that comes and goes."""

import asyncio
import os
import shutil
import sqlite3
import stat
import threading
from pathlib import Path

import pytest
from sqlalchemy import Connection, Insert, func, insert, inspect, select, text
from sqlalchemy.exc import IntegrityError

from service.errors import InsufficientStorage, OutOfResources
from service.jobs import schema
from service.jobs.database import Database, in_memory_database, postgres_database, sqlite_database
from service.jobs.schema import MIGRATIONS, NewerDatabase, migrate, results
from tests.file_systems import mounted, remount
from tests.postgres import Proxy, url_of
from tests.postgres import postgres_database as new_postgres_database
from tests.service.jobs.databases import OpenDatabase


def add(key: str, payload: str = "{}") -> Insert:
    return insert(results).values(
        key=key, payload=payload, created_at=0.0, last_used_at=0.0, size=len(payload)
    )


async def keep(database: Database, key: str, payload: str = "{}") -> None:
    await database.run(lambda connection: connection.execute(add(key, payload)))


def trouble_of(database: Database) -> str | None:
    return database.trouble


async def keys(database: Database) -> list[str]:
    return list(
        await database.read(
            lambda connection: connection.scalars(select(results.c.key).order_by("key")).all()
        )
    )


async def test_what_was_written_is_there_after_a_restart(open_database: OpenDatabase) -> None:
    first = open_database()
    await first.start()
    await keep(first, "a")
    await first.close()
    second = open_database()
    await second.start()
    assert await keys(second) == ["a"]
    await second.close()


async def test_an_error_undoes_the_transaction(database: Database) -> None:
    def add_twice(connection: Connection) -> None:
        connection.execute(add("a"))
        connection.execute(add("a"))

    with pytest.raises(IntegrityError):
        await database.run(add_twice)
    assert await keys(database) == []
    assert trouble_of(database) is None


async def test_the_event_loop_goes_on_while_statements_run(database: Database) -> None:
    may_end = threading.Event()
    writing = asyncio.create_task(database.run(lambda connection: may_end.wait()))
    assert await keys(database) == []  # reads do not wait for writes either
    assert not writing.done()
    may_end.set()
    assert await writing is True


async def test_a_cancelled_caller_waits_until_its_transaction_has_ended(database: Database) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def work(connection: Connection) -> None:
        connection.execute(add("a"))
        begun.set()
        may_end.wait()

    writing = asyncio.create_task(database.run(work))
    await asyncio.to_thread(begun.wait)
    writing.cancel()
    await asyncio.sleep(0)
    assert not writing.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await keys(database) == ["a"]


async def test_two_services_that_start_at_once_migrate_once() -> None:
    with new_postgres_database() as name:
        services = [postgres_database(url_of(name)) for _ in range(4)]
        await asyncio.gather(*(service.start() for service in services))
        await keep(services[0], "a")
        assert [await keys(service) for service in services] == [["a"]] * 4
        for service in services:
            await service.close()


@pytest.mark.parametrize("version", range(1, len(MIGRATIONS)))
async def test_a_database_of_an_earlier_version_is_led_to_this_one(
    open_database: OpenDatabase, version: int
) -> None:
    earlier = open_database()
    engine = earlier._engine
    with engine.begin() as connection:
        migrate(connection, MIGRATIONS[:version])
        connection.execute(
            text(
                "INSERT INTO jobs (id, kind, state, num_models, owner, created_at, deadline, event)"
                " VALUES ('1', 'eval', 'queued', 1, 'o', 1.5, 2.5, 0)"
            )
        )
    await earlier.close()
    database = open_database()
    await database.start()
    await keep(database, "a")
    row = await database.read(lambda c: c.execute(text("SELECT id, created_at FROM jobs")).one())
    assert tuple(row) == ("1", 1.5)
    await database.close()


async def test_the_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    def compare(connection: Connection) -> None:
        for table in schema._metadata.sorted_tables:
            found = {
                column["name"]: column["nullable"] for column in inspect(connection).get_columns(table.name)
            }
            assert found == {column.name: column.nullable for column in table.columns}

    await database.read(compare)


async def test_a_database_of_a_later_version_is_left_alone(open_database: OpenDatabase) -> None:
    later = open_database()
    with later._engine.begin() as connection:
        migrate(connection, [*MIGRATIONS, ["CREATE TABLE later (x INTEGER)"]])
    await later.close()
    database = open_database()
    with pytest.raises(NewerDatabase):
        await database.start()
    with pytest.raises(OutOfResources):
        await keys(database)
    await database.close()


async def test_what_is_not_kept_works_the_same() -> None:
    database = in_memory_database()
    await database.start()
    await keep(database, "a")
    with pytest.raises(IntegrityError):
        await keep(database, "a")
    assert await keys(database) == ["a"]
    await database.close()


async def test_the_file_and_those_beside_it_are_private(tmp_path: Path) -> None:
    database = sqlite_database(tmp_path / "state.sqlite")
    await database.start()
    await keep(database, "a")
    files = list(tmp_path.iterdir())
    assert {file.name for file in files} == {"state.sqlite", "state.sqlite-wal", "state.sqlite-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    await database.close()


async def test_a_commit_is_on_the_disk(tmp_path: Path) -> None:
    database = sqlite_database(tmp_path / "state.sqlite")
    await database.start()
    settings = await database.read(
        lambda c: [
            c.exec_driver_sql(f"PRAGMA {name}").scalar_one() for name in ("journal_mode", "synchronous")
        ]
    )
    assert settings == ["wal", 2]
    await database.close()


async def test_a_full_disk_is_told_and_passes(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m") as disk:
        database = sqlite_database(disk / "state.sqlite")
        await database.start()
        await keep(database, "before")
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "others").write_bytes(bytes(free - 8192))
        for _ in range(2):
            with pytest.raises(InsufficientStorage) as caught:
                await keep(database, "large", "x" * 100_000)
            assert (caught.value.fault, caught.value.retryable) == ("service", True)
        assert await keys(database) == ["before"]
        assert trouble_of(database) == "the disk of this machine is full"  # what can be read does not end it
        (disk / "others").unlink()
        await keep(database, "large", "x" * 100_000)
        assert await keys(database) == ["before", "large"]
        assert trouble_of(database) is None
        await database.close()


async def test_a_read_only_disk_is_told_and_passes(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=4m") as disk:
        database = sqlite_database(disk / "state.sqlite")
        await database.start()
        await keep(database, "a")
        await database.close()
        remount(disk, "ro")
        database = sqlite_database(disk / "state.sqlite")
        await database.start()
        with pytest.raises(OutOfResources) as caught:
            await keep(database, "b")
        assert (caught.value.fault, caught.value.retryable) == ("service", True)
        remount(disk, "rw")
        await keep(database, "b")
        assert await keys(database) == ["a", "b"]
        await database.close()


async def test_a_corrupt_file_is_told_and_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    database = sqlite_database(path)
    await database.start()
    await keep(database, "a")
    await database.close()
    shutil.copy(path, tmp_path / "backup")
    path.write_bytes(b"no database at all" * 1000)
    database = sqlite_database(path)
    await database.start()
    for _ in range(2):
        with pytest.raises(OutOfResources):
            await keys(database)
    assert trouble_of(database) == "the state database is corrupt"
    (tmp_path / "backup").rename(path)
    await keep(database, "b")
    assert await keys(database) == ["a", "b"]
    assert trouble_of(database) is None
    await database.close()


async def test_a_file_that_is_deleted_meanwhile_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    database = sqlite_database(path)
    await database.start()
    await keep(database, "a")
    for file in tmp_path.iterdir():
        file.unlink()
    await keep(database, "b")
    with sqlite3.connect(path) as other:
        assert other.execute("SELECT key FROM results").fetchall() == [("b",)]
    await database.close()


async def test_a_locked_file_is_told_and_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.jobs.database._BUSY_MILLISECONDS", 10)
    path = tmp_path / "state.sqlite"
    database = sqlite_database(path)
    await database.start()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(OutOfResources):
            await keep(database, "a")
        other.execute("COMMIT")
    await keep(database, "a")
    await database.close()


async def test_a_server_that_goes_away_is_told_and_comes_back() -> None:
    with new_postgres_database() as name:
        proxy = Proxy()
        database = postgres_database(url_of(name, proxy.port))
        await database.start()
        await keep(database, "a")
        proxy.close()
        for _ in range(2):
            with pytest.raises(OutOfResources) as caught:
                await keep(database, "b")
            assert (caught.value.fault, caught.value.retryable) == ("service", True)
            assert "127.0.0.1" not in caught.value.detail
        assert trouble_of(database) is not None
        proxy.open()
        await keep(database, "b")
        assert await keys(database) == ["a", "b"]
        assert trouble_of(database) is None
        await database.close()
        proxy.close()


async def test_a_server_that_goes_away_within_a_transaction_undoes_it() -> None:
    with new_postgres_database() as name:
        proxy = Proxy()
        database = postgres_database(url_of(name, proxy.port))
        await database.start()

        def work(connection: Connection) -> None:
            connection.execute(add("a"))
            proxy.close()
            connection.execute(add("b"))

        with pytest.raises(OutOfResources):
            await database.run(work)
        proxy.open()
        assert await keys(database) == []
        await database.close()
        proxy.close()


async def test_a_read_only_database_is_told_and_passes() -> None:
    with new_postgres_database() as name:
        database = postgres_database(url_of(name))
        await database.start()
        other = postgres_database(url_of(name))
        alter = f"ALTER DATABASE {name} SET default_transaction_read_only = {{}}"
        await other.run(lambda c: c.exec_driver_sql(alter.format("on")))
        database._forget_connections()
        with pytest.raises(OutOfResources):
            await keep(database, "a")
        assert trouble_of(database) == "the state database is read-only"
        await other.run(
            lambda c: (
                c.exec_driver_sql("SET TRANSACTION READ WRITE"),
                c.exec_driver_sql(alter.format("off")),
            )
        )
        await keep(database, "a")
        assert await database.read(lambda c: c.scalar(select(func.count()).select_from(results))) == 1
        await database.close()
        await other.close()


async def test_a_service_starts_while_its_server_is_away() -> None:
    with new_postgres_database() as name:
        proxy = Proxy()
        proxy.close()
        database = postgres_database(url_of(name, proxy.port))
        await database.start()
        with pytest.raises(OutOfResources):
            await keys(database)
        proxy.open()
        assert await keys(database) == []
        await database.close()
        proxy.close()
