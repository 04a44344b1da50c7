"""Putting a backup back, in one transaction: what kills it leaves the store as it was.

In: a backup, and the store that is to hold it; out: that store as the backup had it, in the tables of this release.
Three things are not as in the backup, as far as is known here: secrets of keys that were revoked or rotated since stay
so, a store that had keys is not open without them, and the version of tenants and keys grows for whoever watches.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from penstock.store.audit import OPERATOR, Act
from penstock.store.backup import Backup, Progress, TableHead, read_rows, verify_backup
from penstock.store.places import Opened
from penstock.store.sql.migrations import check_not_newer, migrate_within, schema_of
from penstock.store.sql.tables import METADATA
from penstock.store.status import Held, held_within
from penstock.wire.errors import Problem

_ROWS_AT_ONCE = 500


class Restored(msgspec.Struct, frozen=True, kw_only=True):
    """What was put back.  ``kept_secrets``: ids of keys that were revoked or rotated since the backup, and stay so.

    ``is_closed``: no key works now, and services ask for one all the same, since there were keys before.
    """

    made_at: float
    release: str
    schema: int
    held: Held
    kept_secrets: list[str]
    is_closed: bool
    audit_rows: int


def restore(
    opened: Opened,
    path: Path,
    *,
    now: float,
    replace: bool = False,
    progress: Progress = lambda done, total: None,
) -> Restored:
    """Make the store hold what the backup holds.  Raises ``Problem``; the store is then as it was.

    ``backup_invalid``: the file is not whole, or not for this release and secret.  ``conflict``: the store holds
    something, and ``replace`` was not said.  ``audit_broken``: the chain in the backup is not whole.
    """
    backup = verify_backup(path, opened.secret)
    opened.database.create()
    audit = opened.store.audit
    with opened.database.write() as connection:
        check_not_newer(schema_of(connection), f"The store {opened.database.name}")
        there = held_within(connection)
        if not (there.is_empty or replace):
            message = f"The store {opened.database.name} holds {there.words()}; --replace gives all that up for {path}."
            raise Problem("conflict", message)
        known = opened.store.known_within(connection)
        _fill(connection, backup, _counted(read_rows(path, opened.secret), backup, progress))
        migrate_within(connection, opened.database.name)
        audit.verify_within(connection)
        kept = opened.store.take_over(connection, known)
        head = audit.append_within(connection, [_act(path, backup, there)], now)
        held = held_within(connection)
        audit.forget()
    audit.begin_from(head)
    opened.store.prepare()
    access = opened.store.read()
    return Restored(
        made_at=backup.made_at,
        release=backup.release,
        schema=backup.schema,
        held=held,
        kept_secrets=kept,
        is_closed=access.had_keys and all(key.revoked_at is not None for key in access.keys),
        audit_rows=audit.verify(),
    )


def _fill(connection: sa.Connection, backup: Backup, rows: Iterator[tuple[TableHead, list[Any]]]) -> None:
    """Empty the store, and put the rows into tables of the backup's own schema."""
    METADATA.drop_all(connection)
    migrate_within(connection, "", to=backup.schema)
    tables = {head.name: METADATA.tables[head.name] for head in backup.tables}
    for table in tables.values():
        connection.execute(sa.delete(table))  # the note of the schema, which is among the rows
    for head, together in groupby(rows, key=itemgetter(0)):
        insert = sa.insert(sa.table(head.name, *map(sa.column, head.columns)))
        for part in _parts(values for _, values in together):
            connection.execute(insert, [dict(zip(head.columns, values, strict=True)) for values in part])


def _parts(rows: Iterator[list[Any]]) -> Iterator[list[list[Any]]]:
    while part := list(islice(rows, _ROWS_AT_ONCE)):
        yield part


def _counted(
    rows: Iterator[tuple[TableHead, list[Any]]], backup: Backup, progress: Progress
) -> Iterator[tuple[TableHead, list[Any]]]:
    for done, row in enumerate(rows, 1):
        yield row
        if done % _ROWS_AT_ONCE == 0 or done == backup.num_rows:
            progress(done, backup.num_rows)


def _act(path: Path, backup: Backup, there: Held) -> Act:
    subject = f"{path.name} of {datetime.fromtimestamp(backup.made_at, UTC):%Y-%m-%dT%H:%M:%SZ}"
    return Act(actor=OPERATOR, action="store.restore", subject=subject, why="" if there.is_empty else there.words())
