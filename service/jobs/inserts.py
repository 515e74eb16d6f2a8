"""Inserts of rows that may be there already, which another service may be inserting at the same moment."""

from typing import Any

from sqlalchemy import Connection, Executable, Table
from sqlalchemy.dialects import postgresql, sqlite


def insert_or_replace(connection: Connection, table: Table) -> Executable:
    """Gives each row the new values where its key is there already."""
    statement = _insert(connection, table)
    columns = [column.name for column in table.columns if not column.primary_key]
    replacing: Executable = statement.on_conflict_do_update(
        index_elements=list(table.primary_key),
        set_={name: statement.excluded[name] for name in columns},
    )
    return replacing


def insert_or_leave(connection: Connection, table: Table) -> Executable:
    """Leaves a row as it is where its key is there already."""
    statement = _insert(connection, table)
    leaving: Executable = statement.on_conflict_do_nothing(index_elements=list(table.primary_key))
    return leaving


def _insert(connection: Connection, table: Table) -> Any:
    """SQLAlchemy has what to do on a conflict in the dialects, not in its own insert."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
