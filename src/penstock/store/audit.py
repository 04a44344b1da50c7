"""The audit log: who did or was denied what, each row hashed together with the one before it.

In: acts, inside the transaction that carries them out; out: rows, and whether the chain is whole.
The hash is keyed with the servers' secret, so that a row cannot be changed and the chain computed anew by whoever can
write to the database alone.  The end of the chain also stands in a file beside the secret, which shows a cut-off tail.
"""

from __future__ import annotations

import hmac
from collections.abc import Generator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import msgspec
import sqlalchemy as sa

from penstock.config.tenants import Principal
from penstock.store.sql.database import Database
from penstock.store.sql.tables import AUDIT, FACTS
from penstock.wire.errors import Problem

OPERATOR = "operator"
"""The actor at the command line: whoever can read the servers' secret needs no key."""

_HEAD = "audit"
_START = (0, "")


def actor_name(actor: Principal | None) -> str:
    """How the records name who acts; ``None`` is whoever is at the command line."""
    return OPERATOR if actor is None else actor.key_id or "anonymous"


class Act(msgspec.Struct, frozen=True, kw_only=True):
    """One act.  ``actor``: a key's id, ``operator`` at the command line, or an address; ``why``: a word on a denial."""

    actor: str
    action: str
    subject: str
    verdict: str = "allowed"
    why: str = ""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A row: an act, its place from 1 on, and when, in seconds since the epoch."""

    seq: int
    at: float
    actor: str
    action: str
    subject: str
    verdict: str
    why: str
    hash: str


class Audit:
    """The log of one database.  ``anchor``: the file that repeats the end of the chain."""

    def __init__(self, database: Database, secret: bytes, anchor: Path) -> None:
        self._database = database
        self._secret = secret
        self._anchor = anchor

    def append(self, acts: list[Act], now: float) -> None:
        """Add rows in a transaction of their own."""
        with self._database.write() as connection:
            head = self.append_within(connection, acts, now)
        self.remember(head)

    def append_within(self, connection: sa.Connection, acts: list[Act], now: float) -> tuple[int, str]:
        """Add rows in this transaction; call :meth:`remember` with the result once it is committed."""
        seq, last = self._head(connection)
        for act in acts:
            seq += 1
            row = {"seq": seq, "at": now, **msgspec.structs.asdict(act)}
            last = self._hash(last, row)
            connection.execute(sa.insert(AUDIT).values(**row, hash=last))
        self._set_head(connection, (seq, last))
        return seq, last

    def remember(self, head: tuple[int, str]) -> None:
        """Write the end of the chain beside the secret.  On a full disk the file stays behind, which harms nobody.

        Not where the chain has become another one since: a restore in between wrote down its own end.
        """
        with suppress(Problem), self._database.read() as connection:
            row = connection.execute(sa.select(AUDIT.c.hash).where(AUDIT.c.seq == head[0])).scalar()
            if row == head[1] and head[0] > self._anchored()[0]:
                self.begin_from(head)

    def begin_from(self, head: tuple[int, str]) -> None:
        """The same after a restore, whatever was remembered of the chain before."""
        with suppress(OSError):
            self._anchor.touch(mode=0o600)
            self._anchor.write_text(f"{head[0]}:{head[1]}")

    def forget(self) -> None:
        """The chain is about to be replaced by an older one; until it is remembered, none is held against another."""
        self._anchor.unlink(missing_ok=True)

    def resume(self, connection: sa.Connection) -> None:
        """Go on counting where a lost database was: what it held then shows as missing, and nothing as well-kept."""
        self._set_head(connection, self._anchored())

    def list(self, *, newest: int) -> list[Entry]:
        """The newest rows, oldest of them first."""
        with self._database.read() as connection:
            rows = connection.execute(sa.select(AUDIT).order_by(AUDIT.c.seq.desc()).limit(newest)).mappings()
            return [Entry(**row) for row in rows][::-1]

    def verify(self) -> int:
        """How many rows there are, all of them whole and in place.

        Raises ``Problem`` ``audit_broken``, which names the first row that is missing or was changed.
        """
        with self._database.read() as connection:
            return self.verify_within(connection, self._anchored())

    def verify_within(self, connection: sa.Connection, anchor: tuple[int, str] = _START) -> int:
        """The same in this transaction; ``anchor``: a row that has to be there, by its place and its hash."""
        seq, last = _START
        with closing(self._rows(connection)) as rows:
            for row in rows:
                if row["seq"] != seq + 1:
                    raise Problem("audit_broken", f"Row {seq + 1} is missing.")
                if not hmac.compare_digest(row["hash"].encode(), self._hash(last, row).encode()):
                    raise Problem("audit_broken", f"Row {row['seq']} was changed.")
                seq, last = row["seq"], row["hash"]
                if seq == anchor[0] and last != anchor[1]:
                    raise Problem("audit_broken", f"Row {seq} is not the one that was written.")
        if (seq, last) != self._head(connection) or seq < anchor[0]:
            raise Problem("audit_broken", f"The rows after {seq} are missing.")
        return seq

    def _rows(self, connection: sa.Connection) -> Generator[dict[str, Any], None, None]:
        question = sa.select(AUDIT).order_by(AUDIT.c.seq).execution_options(yield_per=1000)
        with connection.execute(question) as found:
            for row in found.mappings():
                yield dict(row)

    def _hash(self, last: str, row: dict[str, Any]) -> str:
        columns = [row[name] for name in ("seq", "at", "actor", "action", "subject", "verdict", "why")]
        return hmac.digest(self._secret, msgspec.json.encode(["audit", last, *columns]), "sha256").hex()

    def _head(self, connection: sa.Connection) -> tuple[int, str]:
        return _parsed(connection.execute(sa.select(FACTS.c.value).where(FACTS.c.name == _HEAD)).scalar() or "")

    def _set_head(self, connection: sa.Connection, head: tuple[int, str]) -> None:
        connection.execute(sa.update(FACTS).where(FACTS.c.name == _HEAD).values(value=f"{head[0]}:{head[1]}"))

    def _anchored(self) -> tuple[int, str]:
        try:
            return _parsed(self._anchor.read_text())
        except OSError:
            return _START


def _parsed(head: str) -> tuple[int, str]:
    seq, _, last = head.partition(":")
    return (int(seq), last) if seq.isdigit() else _START
