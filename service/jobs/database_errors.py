"""Which errors of the database are trouble of this service, and which trouble."""

import sqlite3

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from service.errors import InsufficientStorage, OutOfResources, ServiceTrouble, exhaustion_of

_SQLITE_TROUBLE = {
    sqlite3.SQLITE_FULL: "the disk of this machine is full",
    sqlite3.SQLITE_READONLY: "the state database is read-only",
    sqlite3.SQLITE_PERM: "the state database is read-only",
    sqlite3.SQLITE_IOERR: "the state database cannot be read or written",
    sqlite3.SQLITE_CANTOPEN: "the state database cannot be opened",
    sqlite3.SQLITE_CORRUPT: "the state database is corrupt",
    sqlite3.SQLITE_NOTADB: "the state database is corrupt",
    sqlite3.SQLITE_BUSY: "the state database is in use by another program",
    sqlite3.SQLITE_LOCKED: "the state database is in use by another program",
    sqlite3.SQLITE_NOMEM: "this machine is out of memory",
    sqlite3.SQLITE_PROTOCOL: "the state database is in use by another program",
}
"""By SQLite's primary result code: https://www.sqlite.org/rescode.html."""

_POSTGRES_TROUBLE = {
    "53100": "the disk of the state database is full",
    "25006": "the state database is read-only",
    "42501": "the state database refuses this service",
    "53": "the state database is out of resources",
    "08": "the state database cannot be reached",
    "28": "the state database refuses this service",
    "3D": "the state database does not exist",
    "40": "the state database is busy",
    "55": "the state database is busy",
    "57": "the state database is stopping, or takes too long",
    "58": "the state database cannot be read or written",
    "XX": "the state database is corrupt",
}
"""By PostgreSQL's SQLSTATE, or by its class: https://www.postgresql.org/docs/current/errcodes-appendix.html."""

_FULL = {sqlite3.SQLITE_FULL, "53100"}


def trouble_of(error: BaseException) -> ServiceTrouble | None:
    """The trouble that the error stands for; None for every other error, an IntegrityError for example."""
    if not isinstance(error, DBAPIError):
        if isinstance(error, PoolTimeout):
            return OutOfResources("the state database is busy")
        return exhaustion_of(error)
    match code_of(error):
        case int() as code:
            detail = _SQLITE_TROUBLE.get(code & 0xFF)  # the rest makes it an extended code
            is_full = code & 0xFF in _FULL
        case str() as state:
            detail = _POSTGRES_TROUBLE.get(state) or _POSTGRES_TROUBLE.get(state[:2])
            is_full = state in _FULL
        case None:  # no server has answered
            is_lost = isinstance(error, OperationalError | InterfaceError) or error.connection_invalidated
            detail = "the state database cannot be reached" if is_lost else None
            is_full = False
    if detail is None:
        return None
    return InsufficientStorage(detail) if is_full else OutOfResources(detail)


def code_of(error: BaseException | None) -> int | str | None:
    """SQLite's extended result code, or PostgreSQL's SQLSTATE; None where there is neither."""
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", None) or getattr(original, "sqlstate", None)
    return code if isinstance(code, int | str) else None
