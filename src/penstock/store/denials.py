"""Who was turned away, on its way into the audit log: counted here, written once a second.

In: addresses and reasons, at any rate; out: one row of audit per address and reason and second, with how many.
Holds at most ``MAX_KINDS`` kinds at a time; what does not fit is counted together.  Lost store: it waits.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from penstock.store.audit import Act, Audit
from penstock.wire.errors import Problem

MAX_KINDS = 1000
_ELSE = ("elsewhere", "")


class Denials:
    """Call it with an address and a reason; :meth:`write_regularly` runs beside."""

    def __init__(self, audit: Audit, now: Callable[[], float]) -> None:
        self._audit = audit
        self._now = now
        self._counts: Counter[tuple[str, str]] = Counter()

    def __call__(self, address: str, why: str) -> None:
        self._add((address, why), 1)

    async def write_regularly(self, interval_s: float = 1.0) -> None:
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.to_thread(self.write)

    def write(self) -> None:
        """Write what was counted, or keep it when the store is not available."""
        counts, self._counts = self._counts, Counter()
        acts = [
            Act(actor=address, action="request", subject=f"{count} requests", verdict="denied", why=why)
            for (address, why), count in counts.items()
        ]
        if not acts:
            return
        try:
            self._audit.append(acts, self._now())
        except Problem:
            for kind, count in counts.items():
                self._add(kind, count)

    def _add(self, kind: tuple[str, str], count: int) -> None:
        self._counts[kind if kind in self._counts or len(self._counts) < MAX_KINDS else _ELSE] += count
