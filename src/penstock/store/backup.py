"""A backup: everything in a store as one signed file, whichever database it was and will be.

In: a database, and the servers' secret; out: a file that is whole or not there, and its rows again.
Lines of JSON under gzip: a head, each row as the number of its table and its values, and the signature over all that.
The secret itself is not in it.  Argued in docs/decisions/017-store-backup.md.
"""

from __future__ import annotations

import gzip
import hmac
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from penstock import __version__
from penstock.store.disk import replacing, writing
from penstock.store.secret import SECRET_HINT
from penstock.store.sql.database import Database
from penstock.store.sql.migrations import STEPS, check_not_newer, schema_of
from penstock.store.sql.tables import METADATA
from penstock.wire.credentials import digest_of
from penstock.wire.errors import Problem

Progress = Callable[[int, int], None]
"""Is told how many rows of how many are done."""

_FORMAT = "penstock store 1"
_MOST_LINE_BYTES = 16 * 1024 * 1024
_ROWS_PER_WORD = 1000
_NO_LINE = (msgspec.MsgspecError, UnicodeDecodeError)
_encode = msgspec.json.Encoder().encode


class TableHead(msgspec.Struct, frozen=True, kw_only=True):
    """One table: its columns in the order of the values, and how many rows there are."""

    name: str
    columns: list[str]
    rows: int


class Backup(msgspec.Struct, frozen=True, kw_only=True):
    """The head of a backup.  ``made_at``: seconds since the epoch; ``secret``: the check of the one that signed it."""

    format: str
    schema: int
    release: str
    made_at: float
    secret: str
    tables: list[TableHead]

    @property
    def num_rows(self) -> int:
        return sum(table.rows for table in self.tables)


class _End(msgspec.Struct, frozen=True, kw_only=True):
    signature: str


_decode_head = msgspec.json.Decoder(Backup).decode
_decode_line: Callable[[bytes], tuple[int, list[Any]] | _End] = msgspec.json.Decoder(
    tuple[int, list[str | int | float | None]] | _End
).decode


def write_backup(
    database: Database, secret: bytes, path: Path, *, now: float, progress: Progress = lambda done, total: None
) -> Backup:
    """Write what the store holds at this moment, while others may go on writing to it.

    Raises ``Problem``: ``store_unavailable``; ``insufficient_disk``, and then an earlier backup is as it was;
    ``conflict`` when ``path`` is something else than a backup.
    """
    _check_place(path)
    with _placing(path), database.read(frozen=True) as connection, replacing(path) as raw:
        schema = schema_of(connection)
        if not schema:
            raise Problem("store_unavailable", f"The store {database.name} holds nothing yet.")
        check_not_newer(schema, f"The store {database.name}")
        backup = Backup(
            format=_FORMAT,
            schema=schema,
            release=__version__,
            made_at=now,
            secret=digest_of(b"store", secret),
            tables=_heads(connection),
        )
        # Level 1: rows of usage shrink eightfold at any level, and this one keeps up with the database.
        with gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, filename="", mtime=0) as file:
            _write_rows(file, connection, backup, secret, progress)
    return backup


def read_head(path: Path, secret: bytes) -> Backup:
    """What a backup says of itself.  Raises ``Problem`` for a file that is none, or not for this installation."""
    with _reading(path) as file:
        return _head(file.readline(_MOST_LINE_BYTES), path, secret)


def read_rows(path: Path, secret: bytes) -> Iterator[tuple[TableHead, list[Any]]]:
    """The rows with their tables.  Raises ``Problem``, at the end at the latest, unless all is as it was written."""
    with _reading(path) as file:
        line = file.readline(_MOST_LINE_BYTES)
        tables = _head(line, path, secret).tables
        signature = _signature(secret)
        while True:
            signature.update(line)
            line = file.readline(_MOST_LINE_BYTES)
            said = _decoded(line, path)
            if isinstance(said, _End):
                if not _is_same(said.signature, signature.hexdigest()) or file.read(1):
                    raise _damaged(path)
                return
            number, values = said
            if not 0 <= number < len(tables) or len(values) != len(tables[number].columns):
                raise _damaged(path)
            yield tables[number], values


def verify_backup(path: Path, secret: bytes) -> Backup:
    """Read all of it.  Raises ``Problem`` unless every byte is as it was written, by this installation."""
    for _ in read_rows(path, secret):
        pass
    return read_head(path, secret)


def _heads(connection: sa.Connection) -> list[TableHead]:
    inspector = sa.inspect(connection)
    heads = []
    for table in METADATA.sorted_tables:
        if inspector.has_table(table.name):
            columns = [str(column["name"]) for column in inspector.get_columns(table.name)]
            rows = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            heads.append(TableHead(name=str(table.name), columns=columns, rows=rows))
    return heads


def _write_rows(
    file: gzip.GzipFile, connection: sa.Connection, backup: Backup, secret: bytes, progress: Progress
) -> None:
    signature, done = _signature(secret), 0

    def put(line: bytes) -> None:
        signature.update(line)
        file.write(line)

    put(_encode(backup) + b"\n")
    for number, head in enumerate(backup.tables):
        columns: list[sa.ColumnClause[Any]] = [sa.column(name) for name in head.columns]
        question = sa.select(*columns).select_from(sa.table(head.name))
        for row in connection.execute(question.execution_options(yield_per=_ROWS_PER_WORD)):
            put(_encode((number, tuple(row))) + b"\n")
            done += 1
            if done % _ROWS_PER_WORD == 0:
                progress(done, backup.num_rows)
    file.write(_encode(_End(signature=signature.hexdigest())) + b"\n")
    progress(done, backup.num_rows)


def _check_place(path: Path) -> None:
    """Only a backup is replaced: a slip of the fingers must not cost a store."""
    with _placing(path):
        if path.exists() and not _is_backup(path):
            raise Problem("conflict", f"{path} is there and is no backup; give another FILE.")


def _is_backup(path: Path) -> bool:
    try:
        with _reading(path) as file:
            _decode_head(file.readline(_MOST_LINE_BYTES))
    except (Problem, *_NO_LINE):
        return False
    return True


def _placing(path: Path) -> AbstractContextManager[None]:
    return writing(path, advice="give another FILE", param="FILE")


@contextmanager
def _reading(path: Path) -> Iterator[gzip.GzipFile]:
    """The file's lines; whatever is wrong with the file is a ``Problem``."""
    try:
        with gzip.open(path, "rb") as file:
            yield file
    except (gzip.BadGzipFile, zlib.error, EOFError):
        raise _damaged(path) from None
    except OSError as error:
        raise Problem("invalid_setting", f"{path} cannot be read: {error.strerror}.", param="FILE") from None


def _head(line: bytes, path: Path, secret: bytes) -> Backup:
    try:
        head = _decode_head(line)
    except _NO_LINE:
        raise Problem("backup_invalid", f"{path} is no backup of a store.") from None
    if head.format != _FORMAT or head.schema > len(STEPS):
        message = f"{path} was written by a newer release ({head.release}, schema {head.schema}): restore it with that."
        raise Problem("backup_invalid", message)
    if not _is_same(head.secret, digest_of(b"store", secret)):
        message = f"{path} was made with another secret: the file `secret` of that PENSTOCK_HOME has to be in this one."
        raise Problem("backup_invalid", message, hint=SECRET_HINT)
    return head


def _decoded(line: bytes, path: Path) -> tuple[int, list[Any]] | _End:
    try:
        return _decode_line(line)
    except _NO_LINE:
        raise _damaged(path) from None


def _is_same(said: str, known: str) -> bool:
    """As bytes, since of texts only ASCII is compared in equal time, and a hostile file may say anything."""
    return hmac.compare_digest(said.encode(), known.encode())


def _signature(secret: bytes) -> hmac.HMAC:
    return hmac.new(secret, b"backup\n", "sha256")


def _damaged(path: Path) -> Problem:
    return Problem("backup_invalid", f"{path} is damaged or not whole: it is not as it was written.")
