"""How a database comes to have the tables of this release.

In: a database; out: its schema is the newest, or a ``Problem`` when a newer release has written it.
Each step runs once, in order, in a transaction of its own together with the note that it ran.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa

from penstock.store.sql.database import Database
from penstock.store.sql.tables import API_KEYS, AUDIT, FACTS, TENANTS, USAGE
from penstock.wire.errors import Problem

_SCHEMA = "schema"

Step = Callable[[sa.Connection], None]


def _identity(connection: sa.Connection) -> None:
    for table in (TENANTS, API_KEYS, AUDIT):
        table.create(connection)


def _usage(connection: sa.Connection) -> None:
    USAGE.create(connection)


STEPS: tuple[Step, ...] = (_identity, _usage)
"""New steps go to the end; what has been released is never changed."""


def migrate(database: Database) -> None:
    """Bring the schema up to date.  Raises ``store_unavailable`` for one that is newer than this release."""
    for number, step in enumerate(STEPS, 1):
        with database.write() as connection:
            FACTS.create(connection, checkfirst=True)
            known = _version(connection)
            if known > len(STEPS):
                message = f"The store {database.name} was written by a newer release (schema {known})."
                raise Problem("store_unavailable", message)
            if known < number:
                step(connection)
                connection.execute(sa.delete(FACTS).where(FACTS.c.name == _SCHEMA))
                connection.execute(sa.insert(FACTS).values(name=_SCHEMA, value=str(number)))


def _version(connection: sa.Connection) -> int:
    value = connection.execute(sa.select(FACTS.c.value).where(FACTS.c.name == _SCHEMA)).scalar()
    return int(value) if value else 0
