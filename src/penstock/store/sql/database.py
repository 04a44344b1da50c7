"""A database by its URL: SQLite in a file of ours, or PostgreSQL.

In: a URL; out: connections inside transactions.  Whatever the database cannot do now is a ``Problem``:
``insufficient_disk``, or ``store_unavailable`` when it is locked, gone, unreadable or not there at all.
A SQLite file that was deleted or replaced under us counts as gone: writing into an unlinked file would lose it all.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event, exc

from penstock.store.disk import writing
from penstock.wire.errors import Problem

_CONNECT_TIMEOUT_S = 2
_STATEMENT_TIMEOUT_S = 5
_DISK_FULL = "53100"  # SQLSTATE disk_full
_WRITERS = 0x70656E73
"""PostgreSQL's advisory lock of all writers, which is SQLite's BEGIN IMMEDIATE there."""

Traces = tuple[tuple[int, int, int], ...]
"""Of each file its number, its size and when it was last written to."""


class Database:
    """One handle, for any number of threads.  ``lock_timeout_s`` bounds how long another writer is waited for."""

    def __init__(self, url: str, *, lock_timeout_s: float = 2.0) -> None:
        try:
            parsed = sa.make_url(url)
        except exc.ArgumentError:
            raise _bad_url() from None
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.path = Path(parsed.database or "") if self.is_sqlite else None
        self.name = str(self.path) if self.is_sqlite else parsed.render_as_string(hide_password=True)
        self._inode: tuple[int, int] | None = None
        if self.is_sqlite:
            self._engine = sa.create_engine(parsed, connect_args={"timeout": lock_timeout_s}, pool_size=2)
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
        elif parsed.get_backend_name() == "postgresql":
            self._engine = _postgres(parsed, lock_timeout_s)
        else:
            raise _bad_url()

    def create(self) -> bool:
        """Make the file, readable for this user alone.  Whether it was not there before; PostgreSQL's always is."""
        if self.path is None:
            return False
        with writing(self.path):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            except FileExistsError:
                return False
        return True

    @contextmanager
    def read(self, *, frozen: bool = False) -> Iterator[sa.Connection]:
        """A transaction that only reads.  ``frozen``: all of it at one moment, whoever writes meanwhile."""
        # SQLite's are always frozen, from their first question on.
        options = {"isolation_level": "REPEATABLE READ"} if frozen and not self.is_sqlite else {}
        with self._problems():
            self._look_at_file()
            with self._engine.connect().execution_options(**options) as connection, connection.begin():
                yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """A transaction that writes: committed at the end, undone by an exception.

        One at a time, in all processes: what it reads is what it changes.
        """
        with self._problems():
            self._look_at_file()
            with self._engine.connect().execution_options(penstock_write=True) as connection, connection.begin():
                if not self.is_sqlite:
                    connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITERS)))
                yield connection

    def traces(self) -> Traces | None:
        """What every commit changes of the files, for comparing; ``None``: one has to ask the database itself."""
        if self.path is None:
            return None
        try:
            found = (self.path.stat(), self.path.with_name(self.path.name + "-wal").stat())
        except OSError:
            return None
        return tuple((file.st_ino, file.st_size, file.st_mtime_ns) for file in found)

    def close(self) -> None:
        self._engine.dispose()

    def _look_at_file(self) -> None:
        if self.path is None:
            return
        try:
            found = self.path.stat()
        except OSError as error:
            self._engine.dispose()
            raise Problem("store_unavailable", f"The store {self.path} is gone ({error.strerror}).") from None
        if self._inode not in (None, (found.st_dev, found.st_ino)):
            self._engine.dispose()
        self._inode = (found.st_dev, found.st_ino)

    @contextmanager
    def _problems(self) -> Iterator[None]:
        try:
            yield
        except exc.TimeoutError as error:
            raise Problem("store_unavailable", f"The store {self.name} has no connection free.") from error
        except exc.DBAPIError as error:
            raise self._problem(error) from error

    def _problem(self, error: exc.DBAPIError) -> Problem:
        cause: Any = error.orig
        # The low byte is the primary result code; the rest refines it (https://sqlite.org/rescode.html).
        primary = getattr(cause, "sqlite_errorcode", 0) & 0xFF
        if primary == sqlite3.SQLITE_FULL or getattr(cause, "sqlstate", None) == _DISK_FULL:
            return Problem("insufficient_disk", f"No disk space left for the store {self.name}.")
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Problem("store_unavailable", f"The store {self.name} is locked by another process.")
        # Only the kind of a server's error: its text may repeat what was sent.
        said = str(cause) if self.is_sqlite else type(cause).__name__
        return Problem("store_unavailable", f"The store {self.name} cannot be used: {said}.")


def _postgres(url: sa.URL, lock_timeout_s: float) -> sa.Engine:
    options = f"-c statement_timeout={_STATEMENT_TIMEOUT_S * 1000} -c lock_timeout={int(lock_timeout_s * 1000)}"
    try:
        return sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            connect_args={"connect_timeout": _CONNECT_TIMEOUT_S, "options": options},
            pool_pre_ping=True,
            pool_size=2,
            pool_timeout=_CONNECT_TIMEOUT_S,
        )
    except ImportError:
        message = "PostgreSQL needs the extra: pip install 'penstock[postgres]'."
        raise Problem("invalid_setting", message, param="--store") from None


def _bad_url() -> Problem:
    # The URL itself is not repeated: it may hold a password.
    message = "The store's URL is not one of sqlite:///PATH and postgresql://USER@HOST/DATABASE."
    return Problem("invalid_setting", message, param="--store")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    # Transactions are begun by us, below: Python's own begin too late and never IMMEDIATE.
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")


def _begin_sqlite(connection: sa.Connection) -> None:
    # IMMEDIATE takes the write lock before anything is read, so that no two writers decide from the same version.
    writes = connection.get_execution_options().get("penstock_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
