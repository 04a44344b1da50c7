"""How a database comes to have the tables of this release.

In: a database of any earlier schema; out: the newest, or a ``Problem`` when a newer release has written it.
All steps that are due are one transaction, of one process at a time: a killed one leaves the schema that it found.
A step only adds, so that a program of the release before it goes on while others are replaced.
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa

from penstock.store.sql.database import Database
from penstock.store.sql.tables import FACTS
from penstock.wire.errors import Problem

SCHEMA = "schema"
"""The fact that tells which steps were done."""

_FACTS = "CREATE TABLE IF NOT EXISTS facts (name TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL)"

_IDENTITY = (
    "CREATE TABLE tenants (name TEXT NOT NULL PRIMARY KEY, parent TEXT, weight FLOAT NOT NULL, rights TEXT NOT NULL)",
    "CREATE TABLE api_keys (id TEXT NOT NULL PRIMARY KEY, tenant TEXT NOT NULL, digest TEXT NOT NULL UNIQUE, "
    "name TEXT NOT NULL, rights TEXT NOT NULL, created_at FLOAT NOT NULL, expires_at FLOAT, revoked_at FLOAT, "
    "old_digest TEXT NOT NULL, old_until FLOAT NOT NULL)",
    "CREATE INDEX ix_api_keys_tenant ON api_keys (tenant)",
    "CREATE TABLE audit (seq BIGINT NOT NULL PRIMARY KEY, at FLOAT NOT NULL, actor TEXT NOT NULL, "
    "action TEXT NOT NULL, subject TEXT NOT NULL, verdict TEXT NOT NULL, why TEXT NOT NULL, hash TEXT NOT NULL)",
)

_USAGE = (
    "CREATE TABLE usage (id TEXT NOT NULL PRIMARY KEY, at FLOAT NOT NULL, gateway TEXT NOT NULL, "
    "tenant TEXT NOT NULL, key_id TEXT NOT NULL, scopes TEXT NOT NULL, model TEXT NOT NULL, route TEXT NOT NULL, "
    "replicas TEXT NOT NULL, outcome TEXT NOT NULL, code TEXT NOT NULL, prompt_tokens BIGINT NOT NULL, "
    "cached_tokens BIGINT NOT NULL, output_tokens BIGINT NOT NULL, reasoning_tokens BIGINT NOT NULL, "
    "cost_nusd BIGINT NOT NULL)",
    "CREATE INDEX ix_usage_at ON usage (at)",
)

STEPS: tuple[tuple[str, ...], ...] = (_IDENTITY, _USAGE)
"""Statements that both databases understand.  New steps go to the end; what has been released is never changed."""


class Migrated(NamedTuple):
    """From which schema to which; equal when nothing was due."""

    before: int
    after: int


def migrate(database: Database) -> Migrated:
    """Bring the schema up to date.  Raises ``store_unavailable`` for one that is newer than this release."""
    with database.write() as connection:
        return migrate_within(connection, database.name)


def migrate_within(connection: sa.Connection, name: str, *, to: int | None = None) -> Migrated:
    """The same inside a transaction that writes; ``to``: no further than this schema."""
    before = schema_of(connection)
    check_not_newer(before, f"The store {name}")
    after = max(before, len(STEPS) if to is None else to)
    if after > before:
        connection.exec_driver_sql(_FACTS)
        for step in STEPS[before:after]:
            for statement in step:
                connection.exec_driver_sql(statement)
        connection.execute(sa.delete(FACTS).where(FACTS.c.name == SCHEMA))
        connection.execute(sa.insert(FACTS).values(name=SCHEMA, value=str(after)))
    return Migrated(before, after)


def schema_of(connection: sa.Connection) -> int:
    """The schema that is there; 0 where there is none."""
    if not sa.inspect(connection).has_table(FACTS.name):
        return 0
    value = connection.execute(sa.select(FACTS.c.value).where(FACTS.c.name == SCHEMA)).scalar()
    return int(value) if value else 0


def check_not_newer(schema: int, what: str) -> None:
    """Raises ``Problem`` ``store_unavailable`` for what a newer release has written."""
    if schema > len(STEPS):
        message = f"{what} was written by a newer release (schema {schema}; this one knows {len(STEPS)}): install that."
        raise Problem("store_unavailable", message)


def check_not_older(schema: int) -> None:
    """Raises ``Problem`` ``store_unavailable`` for a store whose tables lack what this release reads."""
    if schema < len(STEPS):
        message = f"The store has schema {schema} and this release needs {len(STEPS)}: penstock store migrate."
        raise Problem("store_unavailable", message)
