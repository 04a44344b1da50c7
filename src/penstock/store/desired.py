"""The desired state at rest: one row in SQLite, one writer at a time, any number of watchers.

In: models and acknowledgements; out: a :class:`~penstock.config.desired.DesiredState` with a version that only grows.
Never blocks a watcher on a writer (WAL); a full disk, a lock held too long or a broken file is a ``Problem``.
Argued in docs/decisions/003-processes-and-desired-state.md.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from penstock.config.desired import Acknowledgement, DesiredState, Model
from penstock.config.names import Name
from penstock.wire.errors import Problem

_SCHEMA = """
CREATE TABLE IF NOT EXISTS desired (id INTEGER PRIMARY KEY CHECK (id = 1), state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS acknowledgements
    (gateway TEXT PRIMARY KEY, version INTEGER NOT NULL, in_flight INTEGER NOT NULL, at REAL NOT NULL);
"""
_decode_state = msgspec.json.Decoder(DesiredState).decode


class DesiredStore:
    """One handle on the store, for one thread.  ``lock_timeout_s`` bounds how long another writer is waited for.

    Raises ``Problem``: ``insufficient_disk``, or ``store_unavailable`` when locked, unreadable or not a database.
    """

    def __init__(self, path: Path | str, *, lock_timeout_s: float = 2.0) -> None:
        self._path = Path(path)
        self._lock_timeout_s = lock_timeout_s
        with self._problems():
            self._db = self._connect()
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_SCHEMA)

    def read(self) -> DesiredState:
        """The state as last published; version 0 before that."""
        with self._problems():
            return _read(self._db)

    def publish(
        self, models: Sequence[Model], admitting: bool = True, names: Mapping[str, Name] | None = None
    ) -> DesiredState:
        """Replace the state by the next version, atomically: of two writers each gets a version of its own."""
        with self._problems(), self._transaction():
            version = _read(self._db).version + 1
            state = DesiredState(version=version, models=list(models), names=dict(names or {}), admitting=admitting)
            self._db.execute("INSERT OR REPLACE INTO desired VALUES (1, ?)", (msgspec.json.encode(state),))
        return state

    async def watch(self, interval_s: float = 0.1) -> AsyncIterator[DesiredState]:
        """The current state, then every newer one.  Of several changes within ``interval_s`` only the last is seen."""
        with self._problems():
            db = self._connect()  # its own connection: data_version counts the commits of all the others
        try:
            seen, version = None, -1
            while True:
                with self._problems():
                    data_version = db.execute("PRAGMA data_version").fetchone()[0]
                    state = _read(db) if data_version != seen else None
                seen = data_version
                if state is not None and state.version != version:
                    version = state.version
                    yield state
                await asyncio.sleep(interval_s)
        finally:
            db.close()

    def acknowledge(self, acknowledgement: Acknowledgement) -> None:
        """Replace what this gateway said before."""
        said = acknowledgement
        with self._problems(), self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO acknowledgements VALUES (?, ?, ?, ?)",
                (said.gateway, said.version, said.in_flight, said.at),
            )

    def acknowledgements(self) -> list[Acknowledgement]:
        """The last word of every gateway that ever spoke, by name."""
        with self._problems():
            rows = self._db.execute(
                "SELECT gateway, version, in_flight, at FROM acknowledgements ORDER BY gateway"
            ).fetchall()
        return [Acknowledgement(gateway=g, version=v, in_flight=n, at=at) for g, v, n, at in rows]

    def close(self) -> None:
        """Give the files back.  A store that is not closed loses nothing."""
        self._db.close()

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=self._lock_timeout_s, isolation_level=None)
        db.execute("PRAGMA synchronous = NORMAL")
        return db

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # IMMEDIATE takes the write lock before the version is read, so that no two writers count from the same one.
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _problems(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise _problem(error, self._path, self._lock_timeout_s) from error


def _read(db: sqlite3.Connection) -> DesiredState:
    row = db.execute("SELECT state FROM desired").fetchone()
    return _decode_state(row[0]) if row else DesiredState()


def _problem(error: sqlite3.DatabaseError, path: Path, lock_timeout_s: float) -> Problem:
    # The low byte is the primary result code; the rest refines it (https://sqlite.org/rescode.html).
    primary = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if primary == sqlite3.SQLITE_FULL:
        return Problem("insufficient_disk", f"No disk space left for the store {path}.")
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Problem(
            "store_unavailable", f"The store {path} was locked by another process for more than {lock_timeout_s:g} s."
        )
    return Problem("store_unavailable", f"The store {path} cannot be used: {error}.")
