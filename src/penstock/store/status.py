"""What a store holds, and whether it is whole.

In: an opened store; out: counts, or a finding per thing that was looked at.  Changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec
import sqlalchemy as sa

from penstock.config.tenants import TOP
from penstock.store.places import Opened
from penstock.store.sql.database import Database
from penstock.store.sql.migrations import STEPS, check_not_newer, check_not_older, schema_of
from penstock.store.sql.tables import API_KEYS, AUDIT, TENANTS, USAGE
from penstock.wire.errors import Problem


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """How many rows of each kind; the top tenant, which always exists, is not counted."""

    tenants: int = 0
    keys: int = 0
    usage: int = 0
    audit: int = 0

    @property
    def is_empty(self) -> bool:
        return self == Held()

    def words(self) -> str:
        return f"{self.tenants} tenants, {self.keys} keys, {self.usage} rows of usage and {self.audit} of audit"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """A store.  ``newest_schema``: of this release; ``waiting_bytes``: usage in files, on its way into the store."""

    store: str
    schema: int
    newest_schema: int
    held: Held
    waiting_bytes: int


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """What was looked at, and what is wrong with it; nothing where ``problem`` is empty."""

    what: str
    problem: str = ""


def held_within(connection: sa.Connection) -> Held:
    """What the tables hold that are there."""
    inspector = sa.inspect(connection)
    questions = {
        "tenants": (TENANTS, TENANTS.c.name != TOP),
        "keys": (API_KEYS, sa.true()),
        "usage": (USAGE, sa.true()),
        "audit": (AUDIT, sa.true()),
    }
    return Held(
        **{
            name: connection.execute(sa.select(sa.func.count()).select_from(table).where(which)).scalar_one()
            for name, (table, which) in questions.items()
            if inspector.has_table(table.name)
        }
    )


def status(opened: Opened) -> Status:
    """Raises ``Problem`` ``store_unavailable`` where there is no store."""
    with opened.database.read() as connection:
        return Status(
            store=opened.database.name,
            schema=schema_of(connection),
            newest_schema=len(STEPS),
            held=held_within(connection),
            waiting_bytes=sum(path.stat().st_size for path in opened.spill.glob("*.usage")),
        )


def check(opened: Opened) -> Iterator[Finding]:
    """Look at everything, one thing after the other."""
    looks: dict[str, Callable[[], object]] = {
        "schema": lambda: _check_schema(opened.database),
        "pages": lambda: _check_pages(opened.database),
        "tenants and keys": opened.store.read,
        "secret": opened.store.check_secret,
        "audit log": opened.store.audit.verify,
        "snapshot": lambda: _check_snapshot(opened),
    }
    for what, look in looks.items():
        try:
            look()
        except Problem as problem:
            yield Finding(what=what, problem=problem.message)
        else:
            yield Finding(what=what)


def _check_schema(database: Database) -> None:
    with database.read() as connection:
        schema = schema_of(connection)
    check_not_newer(schema, f"The store {database.name}")
    check_not_older(schema)


def _check_pages(database: Database) -> None:
    """PostgreSQL checks its own, where it was set up with checksums."""
    if not database.is_sqlite:
        return
    with database.read() as connection:
        said = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
    if said != ["ok"]:
        raise Problem("store_unavailable", f"The file {database.name} is damaged: {said[0]}.")


def _check_snapshot(opened: Opened) -> None:
    known = opened.store.last_known()
    if known is None or known.version < opened.store.read().version:
        message = "The signed copy of tenants and keys is missing or behind; a service that starts writes it anew."
        raise Problem("store_unavailable", message)
