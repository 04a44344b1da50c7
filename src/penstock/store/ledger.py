"""The usage ledger: one row per request that an engine worked for, in the database, and sums over them.

In: rows, any number of times; out: totals.  A row is known by its request's id, so writing it again changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from penstock.events.list import RequestEnded
from penstock.store.sql.database import Database
from penstock.store.sql.tables import USAGE

if TYPE_CHECKING:
    from sqlalchemy.dialects import postgresql

_ROWS_AT_ONCE = 500
"""SQLite takes 32,766 values in a statement."""


Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""What a column takes; sums of what is far below that do not leave it either."""


class UsageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One request.  ``at``: its end, in seconds since the epoch; ``scopes`` and ``replicas`` are joined by spaces.

    ``cached_tokens`` are part of ``prompt_tokens``, ``reasoning_tokens`` of ``output_tokens``.
    """

    id: str
    at: float
    gateway: str
    tenant: str
    key_id: str
    scopes: str
    model: str
    route: str
    replicas: str
    outcome: str
    code: str
    prompt_tokens: Count
    cached_tokens: Count
    output_tokens: Count
    reasoning_tokens: Count
    cost_nusd: Count


class UsageTotal(msgspec.Struct, frozen=True, kw_only=True):
    """Sums over the rows of one tenant, key and model.  ``cost_usd`` is ``cost_nusd`` for reading."""

    tenant: str
    key_id: str
    model: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    cost_nusd: int
    cost_usd: float


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What one holder of limits has used of one model at one life of a gateway."""

    gateway: str
    scope: str
    model: str
    requests: int
    tokens: int
    nusd: int


def row_of(ended: RequestEnded, gateway: str, at: float) -> UsageRow | None:
    """The row of a request that has ended at ``at``; ``None`` where it was rejected and nothing was done for it."""
    if ended.outcome == "rejected":
        return None
    return UsageRow(
        id=ended.id,
        at=at,
        gateway=gateway,
        tenant=ended.tenant,
        key_id=ended.key_id,
        scopes=" ".join(ended.scopes),
        model=ended.model,
        route=ended.route,
        replicas=" ".join(ended.replicas),
        outcome=ended.outcome,
        code=ended.code,
        prompt_tokens=ended.prompt_tokens,
        cached_tokens=ended.cached_tokens,
        output_tokens=ended.output_tokens,
        reasoning_tokens=ended.reasoning_tokens,
        cost_nusd=ended.cost_nusd,
    )


_COUNTED = ("prompt_tokens", "cached_tokens", "output_tokens", "reasoning_tokens", "cost_nusd")


class Ledger:
    """The ledger of one database, for any number of threads.  Raises ``Problem`` as the database does."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def write(self, rows: Sequence[UsageRow]) -> None:
        """Add the rows that are not there yet, all or none."""
        statement = self._insert().on_conflict_do_nothing(index_elements=["id"])
        with self._database.write() as connection:
            for begin in range(0, len(rows), _ROWS_AT_ONCE):
                part = rows[begin : begin + _ROWS_AT_ONCE]
                connection.execute(statement, [msgspec.structs.asdict(row) for row in part])

    def _insert(self) -> sqlite.Insert | postgresql.Insert:
        if self._database.is_sqlite:
            return sqlite.insert(USAGE)
        from sqlalchemy.dialects import postgresql  # 0.1 s that a start with SQLite does not have

        return postgresql.insert(USAGE)

    def totals(
        self,
        *,
        tenant: str | None = None,
        key_id: str | None = None,
        model: str | None = None,
        since: float | None = None,
    ) -> list[UsageTotal]:
        """Sums per tenant, key and model, in that order, over the rows that match everything given."""
        given = {"tenant": tenant, "key_id": key_id, "model": model}
        where = [USAGE.c[name] == value for name, value in given.items() if value is not None]
        if since is not None:
            where.append(USAGE.c.at >= since)
        by = (USAGE.c.tenant, USAGE.c.key_id, USAGE.c.model)
        # PostgreSQL's sums of BIGINT are NUMERIC.
        sums = [sa.cast(sa.func.sum(USAGE.c[name]), sa.BigInteger).label(name) for name in _COUNTED]
        question = sa.select(*by, sa.func.count().label("requests"), *sums).where(*where).group_by(*by).order_by(*by)
        with self._database.read() as connection:
            return [
                UsageTotal(**row, cost_usd=row["cost_nusd"] / 1e9) for row in connection.execute(question).mappings()
            ]

    def spent(self, since: float, *, without: str) -> list[Spent]:
        """What each holder of limits has used since then by other gateways than ``without``: the one that asks."""
        tokens = USAGE.c.prompt_tokens + USAGE.c.output_tokens
        sums = [sa.cast(sa.func.sum(column), sa.BigInteger) for column in (tokens, USAGE.c.cost_nusd)]
        by = (USAGE.c.gateway, USAGE.c.scopes, USAGE.c.model)
        question = sa.select(*by, sa.func.count(), *sums)
        question = question.where(USAGE.c.at >= since, USAGE.c.gateway != without).group_by(*by)
        found: dict[tuple[str, str, str], list[int]] = {}
        with self._database.read() as connection:
            for gateway, scopes, model, *counts in connection.execute(question):
                for scope in scopes.split():
                    sofar = found.setdefault((gateway, scope, model), [0, 0, 0])
                    found[gateway, scope, model] = [old + new for old, new in zip(sofar, counts, strict=True)]
        return [
            Spent(gateway=gateway, scope=scope, model=model, requests=requests, tokens=num_tokens, nusd=nusd)
            for (gateway, scope, model), (requests, num_tokens, nusd) in sorted(found.items())
        ]
