"""The one database of jobs and results: SQLite in the data folder, or PostgreSQL.

Statements run in two threads of its own, one that writes and one that reads, so the event loop never waits for a
disk. After trouble (full, read-only, corrupt, gone) the database is opened anew with the next use, so that it
recovers without a restart.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import structlog
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import StaticPool

from service.errors import OutOfResources, ServiceTrouble
from service.jobs.database_errors import code_of, trouble_of
from service.jobs.schema import NewerDatabase, migrate
from service.log import RateLimit

T = TypeVar("T")
Work = Callable[[Connection], T]

FILE_NAME = "state.sqlite"

_BUSY_MILLISECONDS = 5_000
_POSTGRES_TIMEOUTS = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,  # milliseconds, for what the server does not acknowledge
    "keepalives_idle": 5,  # seconds, like the next
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "options": "-c statement_timeout=30s -c lock_timeout=10s -c idle_in_transaction_session_timeout=60s",
}
"""A server that no longer answers is noticed within some ten seconds."""

log = structlog.get_logger(__name__)


class Database:
    """Transactions on one database.

    rows = await database.read(lambda connection: connection.execute(select(jobs)).all())
    await database.run(lambda connection: connection.execute(insert(jobs).values(...)))
    """

    def __init__(self, engine: Engine, *, path: Path | None = None, is_kept: bool = True) -> None:
        """`path` is that of an SQLite file. One that is not kept lives in memory, in a single connection."""
        self.is_kept = is_kept
        self.is_shared = engine.dialect.name != "sqlite"
        """Whether other services may use it at the same time."""
        self.trouble: str | None = None
        """What is wrong with it, for people; None while it works."""
        self._engine = engine
        self._path = path
        self._writer = ThreadPoolExecutor(1, "state-write")
        self._reader = ThreadPoolExecutor(1, "state-read") if is_kept else self._writer
        self._trouble_of_writes = False
        self._is_logged = False
        self._log_limit = RateLimit()
        self._opening = threading.Lock()
        self._opened: tuple[int, int] | None = None
        """Device and inode of the SQLite file that is open; zeros for other databases."""

    async def start(self) -> None:
        """Create or migrate the schema. Raises NewerDatabase.

        Other trouble is only logged: evaluations need no database, and every use looks again.
        """
        with contextlib.suppress(ServiceTrouble):
            await self._submit(self._writer, self._open_if_needed, writes=True)

    async def close(self) -> None:
        """Wait for the last statement, and close the connections."""
        await asyncio.to_thread(self._close)

    async def run(self, work: Work[T]) -> T:
        """What `work` returns; its statements are one transaction, durable once this returns.

        Raises InsufficientStorage or OutOfResources when the database cannot be used, and what `work` raises, an
        IntegrityError for example; nothing is changed then. (Where a connection breaks during the commit, it may have
        been committed all the same.) A cancelled caller waits for the end, and so knows what was done.
        """
        return await self._submit(self._writer, lambda: self._transaction(work, writes=True), writes=True)

    async def read(self, work: Work[T]) -> T:
        """The same for statements that change nothing: they do not wait for those that do."""
        return await self._submit(self._reader, lambda: self._transaction(work, writes=False), writes=False)

    async def _submit(self, threads: ThreadPoolExecutor, function: Callable[[], T], *, writes: bool) -> T:
        job = asyncio.get_running_loop().run_in_executor(threads, self._translated, function, writes)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            while not job.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([job])
            job.exception()  # nobody else will ask for it
            raise

    def _translated(self, function: Callable[[], T], writes: bool) -> T:
        try:
            result = function()
        except NewerDatabase:
            raise
        except (SQLAlchemyError, OSError, MemoryError) as error:
            trouble = trouble_of(error)
            if trouble is None:
                raise
            self._note_trouble(trouble, error, writes)
            self._forget_connections()
            raise trouble from error
        self._note_success(writes)
        return result

    def _transaction(self, work: Work[T], *, writes: bool) -> T:
        try:
            self._open_if_needed()
        except NewerDatabase as error:
            raise OutOfResources(str(error)) from error
        with self._engine.connect() as connection:
            connection = connection.execution_options(writes=writes)
            with connection.begin():
                return work(connection)

    def _open_if_needed(self) -> None:
        with self._opening:
            if self._opened is not None and self._opened == self._file_identity():
                return
            self._forget_connections()
            if self._path is not None:
                _make_private(self._path)
            with self._engine.connect() as connection:
                connection = connection.execution_options(writes=True)
                with connection.begin():
                    migrate(connection)
            self._opened = self._file_identity()

    def _file_identity(self) -> tuple[int, int] | None:
        """SQLite itself would go on in a file that was deleted or replaced."""
        if self._path is None:
            return (0, 0)
        try:
            state = self._path.stat()
        except FileNotFoundError:
            return None
        return (state.st_dev, state.st_ino)

    def _forget_connections(self) -> None:
        if self.is_kept:  # what lives in memory lives in its connection
            self._opened = None
            self._engine.dispose()

    def _close(self) -> None:
        for threads in (self._writer, self._reader):
            threads.shutdown(wait=True)
        self._engine.dispose()

    def _note_trouble(self, trouble: ServiceTrouble, cause: BaseException, writes: bool) -> None:
        """Log when trouble begins. Messages of drivers quote addresses: only codes are logged."""
        if self.trouble is None and self._log_limit.permits():
            log.error("the state database cannot be used", reason=trouble.detail, code=code_of(cause))
            self._is_logged = True
        self.trouble = trouble.detail
        self._trouble_of_writes = self._trouble_of_writes or writes

    def _note_success(self, writes: bool) -> None:
        """Log when trouble has passed: a full disk can still be read, so a write ends what a write has met."""
        if self.trouble is None or (self._trouble_of_writes and not writes):
            return
        self.trouble, self._trouble_of_writes = None, False
        if self._is_logged:
            log.info("the state database works again")
            self._is_logged = False


def open_database(state_url: str | None, folder: Path) -> Database:
    """The database of the setting `state_url`: None for SQLite in the folder, `off` for one in memory, or a URL.

    Nothing is connected yet: see `Database.start`. Raises ImportError where PostgreSQL's driver is not installed.
    """
    if state_url == "off":
        return in_memory_database()
    if state_url is None:
        return sqlite_database(folder / FILE_NAME)
    return postgres_database(state_url)


def sqlite_database(path: Path) -> Database:
    """A file that one service uses at a time."""
    engine = create_engine(f"sqlite:///{path}", pool_size=2, max_overflow=0)
    _speak_sqlite(
        engine,
        "PRAGMA journal_mode=WAL",
        "PRAGMA synchronous=FULL",  # a commit is on the disk when it returns
        f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}",
        "PRAGMA secure_delete=ON",  # what is deleted is overwritten
    )
    return Database(engine, path=path)


def in_memory_database() -> Database:
    """The same code where nothing is to be kept."""
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    _speak_sqlite(engine)
    return Database(engine, is_kept=False)


def postgres_database(url: str) -> Database:
    """A PostgreSQL database, which several services may share. Raises ImportError without the extra `postgres`."""
    engine = create_engine(
        url,
        pool_size=2,
        max_overflow=0,
        pool_pre_ping=True,
        connect_args=_POSTGRES_TIMEOUTS,
        hide_parameters=True,
    )
    return Database(engine)


def _speak_sqlite(engine: Engine, *pragmas: str) -> None:
    """Python's driver would begin transactions late and by itself: it is told when, with the lock taken at once."""

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: object) -> None:
        connection.isolation_level = None
        for pragma in pragmas:
            connection.execute(pragma)

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _make_private(path: Path) -> None:
    """SQLite gives its other files the mode of this one."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
