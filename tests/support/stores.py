"""What is in a store, for comparing one with another, and stores of earlier schemas."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from penstock.store.places import Opened
from penstock.store.sql.migrations import migrate_within
from penstock.store.sql.tables import METADATA

Rows = dict[str, list[tuple[Any, ...]]]


def contents(opened: Opened) -> Rows:
    """All rows of all tables that are there, in an order that both databases agree on."""
    with opened.database.read(frozen=True) as connection:
        inspector = sa.inspect(connection)
        names = [name for name in METADATA.tables if inspector.has_table(name)]
        return {
            name: sorted((tuple(row) for row in connection.exec_driver_sql(f"SELECT * FROM {name}")), key=repr)
            for name in names
        }


def earlier(opened: Opened, schema: int) -> None:
    """Make the store as the release of this schema left it, with a tenant and whatever else it could hold."""
    opened.database.create()
    with opened.database.write() as connection:
        migrate_within(connection, "", to=schema)
        for statement in _ROWS[:schema]:
            connection.exec_driver_sql(statement)
        for name, value in (("access", "7"), ("audit", ""), ("secret", opened.store._secret_check())):
            connection.exec_driver_sql(f"INSERT INTO facts VALUES ('{name}', '{value}')")


_ROWS = (
    "INSERT INTO tenants VALUES ('default', NULL, 1.0, '{\"role\":\"admin\"}'), ('lab', 'default', 2.5, '{}')",
    "INSERT INTO usage VALUES ('r1', 1000.0, 'g', 'lab', 'k', 'tenant:lab', 'm', '/v1/x', 'e', 'finished', '', "
    "10, 4, 5, 2, 700)",
)
"""Of each schema, what it added."""
