"""Opens the state of a service: its database and its key, as the settings say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.config import Settings
from service.jobs import state_key
from service.jobs.database import Database, open_database
from service.jobs.result_store import ResultStore
from service.jobs.state_key import StateKey, load_state_key, random_state_key
from service.scoring.kept_results import KeptResults, NoKeptResults


@asynccontextmanager
async def open_state(settings: Settings) -> AsyncIterator[Database]:
    """The database of jobs and results. Raises NewerDatabase; other trouble may pass, and is told to who uses it."""
    database = open_database(settings.state_database, settings.data_dir)
    try:
        await database.start()
        yield database
    finally:
        await database.close()


def state_key_of(settings: Settings) -> StateKey:
    """The key that seals stored requests; one of this process alone where nothing is kept.

    Raises BadStateKey, OSError.
    """
    if settings.state_database == "off":
        return random_state_key()
    return load_state_key(settings.state_key_file or settings.data_dir / state_key.FILE_NAME)


def kept_results(database: Database, settings: Settings) -> KeptResults:
    """The results that are kept in the database, if any are to be."""
    if not database.is_kept or settings.max_kept_results == 0:
        return NoKeptResults()
    return ResultStore(
        database, max_results=settings.max_kept_results, max_age_seconds=settings.max_result_age_seconds
    )
