"""The two kinds of database that the same tests run on."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from service.jobs import database as databases
from service.jobs.database import Database
from tests.postgres import postgres_database, url_of
from tests.service.jobs.databases import OpenDatabase


@pytest.fixture(params=["sqlite", "postgresql"])
def open_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[OpenDatabase]:
    """See tests.service.jobs.databases."""
    if request.param == "sqlite":
        yield lambda: databases.sqlite_database(tmp_path / "state.sqlite")
        return
    with postgres_database() as name:
        yield lambda: databases.postgres_database(url_of(name))


@pytest.fixture
async def database(open_database: OpenDatabase) -> AsyncIterator[Database]:
    """A started database."""
    opened = open_database()
    await opened.start()
    yield opened
    await opened.close()
