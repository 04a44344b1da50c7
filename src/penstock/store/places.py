"""Where below PENSTOCK_HOME the store of tenants and keys keeps its files, and opening it.

In: PENSTOCK_HOME and the database's URL; out: handles that share one secret.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from penstock.store.access import AccessStore
from penstock.store.administer import Administration
from penstock.store.audit import Audit
from penstock.store.ledger import Ledger
from penstock.store.private import keep_private
from penstock.store.secret import server_secret
from penstock.store.served import AskServed, nothing_known
from penstock.store.sql.database import Database

_SNAPSHOT, _HEAD, _USAGE = "access.snapshot", "audit.head", "usage"


class Opened(NamedTuple):
    """The servers' secret, and what is kept in one database: tenants and keys, and the ledger with its spill."""

    secret: bytes
    database: Database
    store: AccessStore
    ledger: Ledger
    spill: Path

    def administration(
        self, now: Callable[[], float], entropy: Callable[[int], bytes], served: AskServed = nothing_known
    ) -> Administration:
        return Administration(self.store, self.secret, now, entropy, served)


def default_url(home: Path) -> str:
    """SQLite in a file of ours."""
    return f"sqlite:///{home / 'penstock.sqlite'}"


def open_access(home: Path, url: str, *, make_secret: bool = True) -> Opened:
    """Handles; nothing is made but the secret.  Raises ``Problem`` ``invalid_setting``."""
    database = Database(url)
    kept = [home / _SNAPSHOT, home / _HEAD, home / _USAGE]
    if database.path is not None:
        kept += [database.path, *(database.path.with_name(database.path.name + end) for end in ("-wal", "-shm"))]
    keep_private(home, kept)
    secret = server_secret(home / "secret", make=make_secret)
    # By the database: services of other stores share PENSTOCK_HOME, and a password may change.
    spill = home / _USAGE / hashlib.sha256(database.name.encode()).hexdigest()[:16]
    audit = Audit(database, secret, home / _HEAD)
    return Opened(secret, database, AccessStore(database, audit, secret, home / _SNAPSHOT), Ledger(database), spill)
