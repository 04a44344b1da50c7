"""Whose turn it is: virtual token counters per tenant, below classes of priority that age.

In: what runs, the lines of what waits, the counters so far, now; out: works in order of service, and the counters.
Counters as in VTC (Sheng et al., arXiv 2401.00588), with a credit for whoever comes seldom.  Pure.
Argued in docs/decisions/021-fair-batches.md.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

PROMPT_COST, CACHED_COST, OUTPUT_COST = 1.0, 0.1, 2.0
"""What a token is charged at: computed in a prompt, found in the prefix cache, computed while decoding."""


class Served(Protocol):
    """A sequence as whoever shares an engine sees it.

    ``tenant`` has a share of ``weight``.  ``priority``: the lower, the earlier; ``level`` is what waiting had made of
    it when it was admitted.  ``arrived_s`` by the engine's time.  Of ``num_charged`` tokens its tenant has paid.
    """

    @property
    def tenant(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def priority(self) -> int: ...
    @property
    def level(self) -> int: ...
    @property
    def arrived_s(self) -> float: ...
    @property
    def num_charged(self) -> int: ...


S = TypeVar("S", bound=Served)
L = TypeVar("L", bound=Served, covariant=True)


class Line(Protocol[L]):
    """What waits of one tenant at one priority, in order of arrival; never empty."""

    @property
    def tenant(self) -> str: ...
    @property
    def priority(self) -> int: ...
    def __iter__(self) -> Iterator[L]: ...


@dataclass(frozen=True, slots=True)
class FairRules:
    """``credit``: by so many charged tokens, over its weight, a tenant that was idle may be behind the others.

    ``ageing_s``: after so long a request counts as one class better, down to the best class that waits.
    """

    credit: float = 8192.0
    ageing_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Counters:
    """Memory: what each tenant was charged, over its weight; ``floor``: the least of those that had work.  Never falls.

    Who is not listed is behind the floor by the whole credit.
    """

    floor: float = 0.0
    charged: Mapping[str, float] = field(default_factory=dict)


def charged(counters: Counters, rules: FairRules, spent: Mapping[str, float]) -> Counters:
    """With ``spent`` added to what tenants were charged: for what a step brought beyond what it was planned to."""
    account = Account(counters, rules)
    return Counters(
        counters.floor, {**counters.charged, **{tenant: account[tenant] + spent[tenant] for tenant in spent}}
    )


class Account:
    """The counters while a step is decided."""

    def __init__(self, counters: Counters, rules: FairRules) -> None:
        self._floor = counters.floor
        self._least = counters.floor - rules.credit
        self._charged = dict(counters.charged)

    def __getitem__(self, tenant: str) -> float:
        return max(self._charged.get(tenant, self._least), self._least)

    def charge(self, work: Served, begin: int, count: int, cost: float) -> None:
        """Tokens ``begin .. begin + count - 1`` are given to ``work``; what it computes anew costs nothing."""
        fresh = begin + count - max(begin, work.num_charged)
        if fresh > 0:
            self._charged[work.tenant] = self[work.tenant] + fresh * cost / work.weight

    def charge_each(self, works: Iterable[Served], cost: float) -> None:
        """One fresh token each, which is what decodes get."""
        spent: dict[str, float] = {}
        for work in works:
            spent[work.tenant] = spent.get(work.tenant, 0.0) + cost / work.weight
        for tenant, charge in spent.items():
            self._charged[tenant] = self[tenant] + charge

    def refund(self, work: Served, begin: int, count: int, cost: float) -> None:
        """Take a charge of this step back: somebody else gets what it was for."""
        self.charge(work, begin, count, -cost)

    def close(self, active: Iterable[str]) -> Counters:
        """The counters after the step; ``active``: the tenants that have work, waiting or running."""
        active = set(active)
        floor = max(self._floor, min((self[tenant] for tenant in active), default=self._floor))
        least = floor - (self._floor - self._least)
        kept = {tenant: charged for tenant, charged in self._charged.items() if charged > least or tenant in active}
        return Counters(floor, kept)


@dataclass(slots=True)
class _Stream(Generic[S]):
    """One source of works: a line, or what is being prefilled of one tenant at one level."""

    works: Iterator[S]
    work: S
    level: int
    waits: bool


class Turns(Generic[S]):
    """Prefilling and waiting works in order of service: by level, then by their tenant's counter.

    Of equal counters the tenant goes first that holds less of the KV memory (``held``: blocks over weight).
    Within a tenant what runs goes before what waits, and each in its own order.  Counters may rise between two turns.
    """

    def __init__(
        self,
        prefilling: Items[S],
        lines: Iterable[Line[S]],
        account: Account,
        held: Mapping[str, float],
        rules: FairRules,
        now: float,
        best_running: int | None = None,
    ) -> None:
        """``best_running``: the best level of what runs, prefilling or not."""
        self._account = account
        self._held = held
        self._rules = rules
        self._now = now
        self._closed = False
        waiting = list(lines)
        present = [line.priority for line in waiting]
        self._best = min(present if best_running is None else [*present, best_running], default=0)
        self._heap: list[tuple[tuple[int, float, float, bool, float], int, _Stream[S]]] = []
        self._count = 0
        sources: dict[tuple[str, int], list[S]] = {}
        for work in prefilling:
            sources.setdefault((work.tenant, work.level), []).append(work)
        for works in sources.values():
            self._push(iter(works), waits=False)
        for line in waiting:
            self._push(iter(line), waits=True)

    def __iter__(self) -> Iterator[tuple[S, int, bool]]:
        """Works with their levels, and whether they wait."""
        while self._heap:
            key, number, stream = heapq.heappop(self._heap)
            if stream.waits and self._closed:
                continue
            now = self._key(stream)
            if now > key:
                heapq.heappush(self._heap, (now, number, stream))
                continue
            yield stream.work, stream.level, stream.waits
            self._push(stream.works, waits=stream.waits)

    def close_lines(self) -> None:
        """Nobody else is admitted: only what runs comes up from now on."""
        self._closed = True

    def level(self, work: Served) -> int:
        """The class of a waiting work by now: waiting makes it better, down to the best there is, and no further."""
        aged = work.priority - int((self._now - work.arrived_s) / self._rules.ageing_s)
        return max(aged, min(self._best, work.priority))

    def _push(self, works: Iterator[S], *, waits: bool) -> None:
        work = next(works, None)
        if work is not None:
            stream = _Stream(works, work, self.level(work) if waits else work.level, waits)
            heapq.heappush(self._heap, (self._key(stream), self._count, stream))
            self._count += 1

    def _key(self, stream: _Stream[S]) -> tuple[int, float, float, bool, float]:
        work = stream.work
        tenant = work.tenant
        arrived = work.arrived_s if stream.waits else 0.0
        return stream.level, self._account[tenant], self._held.get(tenant, 0.0), stream.waits, arrived
