"""The tables, and the migrations that make them from nothing or from what an earlier version has written."""

from collections.abc import Sequence

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Double,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    insert,
    inspect,
    select,
    text,
    update,
)

_metadata = MetaData()

jobs = Table(
    "jobs",
    _metadata,
    Column("id", Text, primary_key=True),  # ids sort by when the jobs were made
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("num_models", Integer, nullable=False),
    Column("owner", Text, nullable=False),  # hash of the API key
    Column("idempotency_key", Text),  # hash; null where there is none, or where it is free again
    Column("body_hash", Text),
    Column("request", LargeBinary),  # sealed; null once the job has ended
    Column("created_at", Double, nullable=False),  # seconds since 1970, as all times here
    Column("deadline", Double, nullable=False),
    Column("finished_at", Double),
    Column("lease_owner", Text),
    Column("lease_until", Double),
    Column("event", BigInteger, nullable=False),  # number of the latest change
    Column("progress", Text),  # JSON, as the next two
    Column("result", Text),
    Column("error", Text),
)

results = Table(
    "results",
    _metadata,
    Column("key", Text, primary_key=True),
    Column("payload", Text, nullable=False),  # JSON
    Column("created_at", Double, nullable=False),
    Column("last_used_at", Double, nullable=False),
    Column("size", BigInteger, nullable=False),  # bytes of the payload
)

screen_keys = Table(
    "screen_keys",
    _metadata,
    Column("owner", Text, primary_key=True),  # hashes, as in jobs
    Column("idempotency_key", Text, primary_key=True),
    Column("body_hash", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

_version = Table("schema_version", _metadata, Column("version", Integer, nullable=False))

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """
        CREATE TABLE jobs (
            id TEXT NOT NULL PRIMARY KEY,
            kind TEXT NOT NULL,
            state TEXT NOT NULL,
            num_models INTEGER NOT NULL,
            owner TEXT NOT NULL,
            idempotency_key TEXT,
            body_hash TEXT,
            request {bytes},
            created_at DOUBLE PRECISION NOT NULL,
            deadline DOUBLE PRECISION NOT NULL,
            finished_at DOUBLE PRECISION,
            lease_owner TEXT,
            lease_until DOUBLE PRECISION,
            event BIGINT NOT NULL,
            progress TEXT,
            result TEXT,
            error TEXT
        )
        """,
        "CREATE UNIQUE INDEX jobs_idempotency ON jobs (owner, idempotency_key)",
        "CREATE INDEX jobs_unfinished ON jobs (lease_until) WHERE finished_at IS NULL",
        "CREATE INDEX jobs_finished ON jobs (finished_at) WHERE finished_at IS NOT NULL",
    ),
    (
        """
        CREATE TABLE results (
            key TEXT NOT NULL PRIMARY KEY,
            payload TEXT NOT NULL,
            created_at DOUBLE PRECISION NOT NULL,
            last_used_at DOUBLE PRECISION NOT NULL,
            size BIGINT NOT NULL
        )
        """,
        "CREATE INDEX results_last_used ON results (last_used_at)",
    ),
    (
        """
        CREATE TABLE screen_keys (
            owner TEXT NOT NULL,
            idempotency_key TEXT NOT NULL,
            body_hash TEXT NOT NULL,
            created_at DOUBLE PRECISION NOT NULL,
            PRIMARY KEY (owner, idempotency_key)
        )
        """,
    ),
)
"""The statements that lead from each version to the next. What has been released is never changed, only added to."""

_BYTES = {"sqlite": "BLOB", "postgresql": "BYTEA"}
_MIGRATION_LOCK = 0x736F6D61
"""Names the lock in PostgreSQL that keeps two services from migrating at once; SQLite's writers wait anyway."""


class NewerDatabase(OSError):
    """A later version of this service has written the database."""


def migrate(connection: Connection, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
    """Lead the schema to the latest version, within the connection's transaction. Raises NewerDatabase."""
    dialect = connection.dialect.name
    if dialect == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    if not inspect(connection).has_table(_version.name):
        _version.create(connection)
        connection.execute(insert(_version).values(version=0))
    version = connection.execute(select(_version.c.version)).scalar_one()
    if version > len(migrations):
        raise NewerDatabase(
            "the state database was written by a later version of soma-eval: "
            "start that version, or give --state-url another database"
        )
    for statements in migrations[version:]:
        for statement in statements:
            connection.exec_driver_sql(statement.format(bytes=_BYTES[dialect]))
    if version < len(migrations):
        connection.execute(update(_version).values(version=len(migrations)))
