"""Tenants and keys at rest: one version at a time, every change one transaction together with its row of audit.

In: changes; out: an ``Access``, now or whenever it changes.  Never on a request's path: gateways watch.
Each change also leaves a signed snapshot, from which a store that was deleted is made again.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from penstock.config.tenants import TOP, Access, ApiKey, Rights, Tenant
from penstock.store.audit import Act, Audit
from penstock.store.snapshot import read_snapshot, write_snapshot
from penstock.store.sql.database import Database, Traces
from penstock.store.sql.migrations import SCHEMA, Migrated, check_not_older, migrate, schema_of
from penstock.store.sql.tables import API_KEYS, FACTS, TENANTS
from penstock.wire.credentials import digest_of
from penstock.wire.errors import Problem

_ASK_EVERY = 3
"""Looks at a database's files per question at least: two commits may leave the same traces."""
_VERSION, _SECRET, _HAD_KEYS = "access", "secret", "had_keys"
_log = logging.getLogger(__name__)
_decode_rights = msgspec.json.Decoder(Rights).decode


class Edit:
    """A change that is being made.  ``access``: what the transaction found, which nobody can change meanwhile."""

    def __init__(self, connection: sa.Connection, access: Access) -> None:
        self.access = access
        self.acts: list[Act] = []
        self.changed = False
        self._connection = connection

    def put_key(self, key: ApiKey) -> None:
        self._replace(API_KEYS, API_KEYS.c.id == key.id, _row(key))

    def put_tenant(self, tenant: Tenant) -> None:
        self._replace(TENANTS, TENANTS.c.name == tenant.name, _row(tenant))

    def delete_tenant(self, name: str) -> None:
        self._connection.execute(sa.delete(TENANTS).where(TENANTS.c.name == name))
        self.changed = True

    def _replace(self, table: sa.Table, which: sa.ColumnElement[bool], row: dict[str, Any]) -> None:
        self._connection.execute(sa.delete(table).where(which))
        self._connection.execute(sa.insert(table).values(**row))
        self.changed = True


class AccessStore:
    """One handle, for any number of threads.  ``snapshot``: the file of the signed copy."""

    def __init__(self, database: Database, audit: Audit, secret: bytes, snapshot: Path) -> None:
        self.audit = audit
        self._database = database
        self._secret = secret
        self._snapshot = snapshot

    def prepare(self) -> Migrated:
        """Make the store, bring it to this release, or make it again from the snapshot when it was lost.

        For those who keep it, not gateways.

        Raises ``Problem``: ``store_unavailable``, ``insufficient_disk``, or ``invalid_setting`` when the servers'
        secret is not the one that this store was written with.
        """
        self._database.create()
        migrated = migrate(self._database)
        with self._database.write() as connection:
            found = _fact(connection, _SECRET)
            if found is None:
                self._fill(connection)
            else:
                self._check_secret(found)
        write_snapshot(self._snapshot, self.read(), self._secret)
        return migrated

    def check_secret(self) -> None:
        """Raises ``Problem`` ``invalid_setting`` when the store was written with another secret than the servers'."""
        with self._database.read() as connection:
            self._check_secret(_fact(connection, _SECRET) or "")

    def read(self) -> Access:
        """Everything, as it is now."""
        with self._database.read() as connection:
            return _read(connection)

    def last_known(self) -> Access | None:
        """The signed snapshot, when the store cannot be read."""
        return read_snapshot(self._snapshot, self._secret)

    @contextmanager
    def change(self, now: float) -> Iterator[Edit]:
        """Change tenants and keys; undone by an exception.  What is noted in ``acts`` goes into the audit log."""
        with self._database.write() as connection:
            edit = Edit(connection, _read(connection))
            yield edit
            head = self.audit.append_within(connection, edit.acts, now)
            if edit.changed:
                _set_fact(connection, _VERSION, str(edit.access.version + 1))
                access = _read(connection)
        self.audit.remember(head)
        if edit.changed:
            try:
                write_snapshot(self._snapshot, access, self._secret)
            except Problem as problem:
                _log.warning("the snapshot of keys stays behind: %s", problem.message)

    def known_within(self, connection: sa.Connection) -> Access | None:
        """What is known of tenants and keys before they are replaced: in the store, or from its snapshot."""
        try:
            return _read(connection) if schema_of(connection) else self.last_known()
        except Problem:
            return self.last_known()

    def take_over(self, connection: sa.Connection, known: Access | None) -> list[str]:
        """A newer version of tenants and keys that were just put back; ids of keys that keep what is ``known`` of them.

        A secret that was revoked or replaced since must not be taken again, whatever an older copy says; revoked keys
        that the copy does not know stay, too, lest a copy of between brings them back.  Who had keys is not opened.
        """
        found = _read(connection)
        edit = Edit(connection, found)
        newer = {key.id: key for key in known.keys} if known is not None else {}
        kept = []
        for key in found.keys:
            as_known = _with_secrets_of(newer.get(key.id, key), key)
            if as_known != key:
                edit.put_key(as_known)
                kept.append(key.id)
        there = {key.id for key in found.keys}
        for key in newer.values():
            if key.id not in there and key.revoked_at is not None:
                edit.put_key(key)
        if newer or (known is not None and known.had_keys):
            _set_fact(connection, _HAD_KEYS, "yes")
        _set_fact(connection, _VERSION, str(max(found.version, known.version if known is not None else 0) + 1))
        return kept

    async def watch(self, interval_s: float = 0.2) -> AsyncIterator[Access | Problem]:
        """The current state and every newer one; a ``Problem`` whenever the store is lost, until it is back.

        Files that look as they did are asked about less often: looking costs a hundredth of asking.
        """
        version, lost = -1, False
        seen: Traces | None = None
        looks = 0
        while True:
            was, seen = seen, self._database.traces()
            looks += 1
            if seen is not None and seen == was and not lost and looks % _ASK_EVERY:
                await asyncio.sleep(interval_s)
                continue
            try:
                access = await asyncio.to_thread(self._newer, -1 if lost else version)
            except Problem as problem:
                if version < 0 and not lost and (known := self.last_known()) is not None:
                    yield known
                if not lost:
                    yield problem
                lost = True
            else:
                lost = False
                if access is not None:
                    version = access.version
                    yield access
            await asyncio.sleep(interval_s)

    async def keep(self, interval_s: float = 0.5) -> None:
        """Make the store again whenever it is gone.  One process does this."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await asyncio.to_thread(self._version)
            except Problem:
                try:
                    await asyncio.to_thread(self.prepare)
                except Problem as problem:
                    _log.warning("the store is still lost: %s", problem.message)

    def close(self) -> None:
        self._database.close()

    def _version(self) -> int:
        with self._database.read() as connection:
            return _stored_version(connection)

    def _newer(self, version: int) -> Access | None:
        with self._database.read() as connection:
            return _read(connection) if _stored_version(connection) != version else None

    def _check_secret(self, found: str) -> None:
        if not hmac.compare_digest(found, self._secret_check()):
            message = f"The store {self._database.name} was written with another secret; its keys cannot be checked."
            raise Problem("invalid_setting", message)

    def _secret_check(self) -> str:
        return digest_of(b"store", self._secret)

    def _fill(self, connection: sa.Connection) -> None:
        known = self.last_known()
        access = known or Access(tenants=(Tenant(name=TOP, rights=Rights(role="admin")),))
        _set_fact(connection, _SECRET, self._secret_check())
        _set_fact(connection, _VERSION, str(access.version + 1))
        _set_fact(connection, "audit", "")
        if access.had_keys:
            _set_fact(connection, _HAD_KEYS, "yes")
        self.audit.resume(connection)
        for tenant in access.tenants:
            connection.execute(sa.insert(TENANTS).values(**_row(tenant)))
        for key in access.keys:
            connection.execute(sa.insert(API_KEYS).values(**_row(key)))
        if known is not None:
            act = Act(actor="penstock", action="store.restore", subject="snapshot")
            self.audit.append_within(connection, [act], 0.0)


def _read(connection: sa.Connection) -> Access:
    tenants = connection.execute(sa.select(TENANTS).order_by(TENANTS.c.name)).mappings().all()
    keys = connection.execute(sa.select(API_KEYS).order_by(API_KEYS.c.created_at, API_KEYS.c.id)).mappings().all()
    return Access(
        version=_stored_version(connection),
        tenants=tuple(Tenant(**_fields(row)) for row in tenants),
        keys=tuple(ApiKey(**_fields(row)) for row in keys),
        had_keys=_fact(connection, _HAD_KEYS) is not None,
    )


def _stored_version(connection: sa.Connection) -> int:
    facts = {fact.name: fact.value for fact in connection.execute(sa.select(FACTS))}
    if _VERSION not in facts:
        # Tables without content are a store that is just being made, which must not be taken for one without keys.
        raise Problem("store_unavailable", "The store is being made.")
    check_not_older(int(facts.get(SCHEMA, 0)))
    return int(facts[_VERSION])


def _with_secrets_of(newer: ApiKey, key: ApiKey) -> ApiKey:
    return msgspec.structs.replace(
        key,
        digest=newer.digest,
        old_digest=newer.old_digest,
        old_until=newer.old_until,
        revoked_at=newer.revoked_at if newer.revoked_at is not None else key.revoked_at,
    )


def _fields(row: Any) -> dict[str, Any]:
    return {**row, "rights": _decode_rights(row["rights"])}


def _row(item: Tenant | ApiKey) -> dict[str, Any]:
    return {**msgspec.structs.asdict(item), "rights": msgspec.json.encode(item.rights).decode()}


def _fact(connection: sa.Connection, name: str) -> str | None:
    return connection.execute(sa.select(FACTS.c.value).where(FACTS.c.name == name)).scalar()


def _set_fact(connection: sa.Connection, name: str, value: str) -> None:
    connection.execute(sa.delete(FACTS).where(FACTS.c.name == name))
    connection.execute(sa.insert(FACTS).values(name=name, value=value))
