"""Where requests wait while the engines have more work than room.

In: requests with their tokens as estimated; out: their turn, or a ``Problem``.  ``policy.admit`` decides.
Room is what the ready replicas report of their KV caches; where one reports none, nobody waits here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress

from penstock.config.tenants import Principal
from penstock.gateway.replicas import Replicas
from penstock.policy.admit import AdmitRules, AdmitVerdict, Entry, Room, Shares, arrive, next_up
from penstock.ports import Clock
from penstock.wire.errors import Problem

_OVERSUBSCRIBED = 2
"""How often a KV cache is given away: prompts share prefixes, and an engine's own queue must not run empty."""
_RATE_WINDOW_S = 5.0
"""Over about so long the speed is averaged at which tokens leave, of the time in which somebody waited: of any other it
would say how little was asked for."""


class Queue:
    """One model's door.  ``enter`` and ``leave`` come in pairs, whatever happens between them.

    ``one_waits()`` is called whenever a request has to.
    """

    def __init__(
        self,
        capacity: Callable[[], int | None],
        clock: Clock,
        rules: AdmitRules,
        one_waits: Callable[[], None] = lambda: None,
    ) -> None:
        self._one_waits = one_waits
        self._capacity = capacity
        self._clock = clock
        self._rules = rules
        self._shares = Shares()
        self._waiting: dict[str, tuple[Entry, asyncio.Future[None]]] = {}
        self._running: dict[str, int] = {}
        self._running_tokens = 0
        self._drained_tokens = 0.0
        self._drained_s = 0.0
        self._full_since: float | None = None

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    async def enter(self, id: str, principal: Principal, cost: int, priority: int = 0) -> None:
        """Return when it is this request's turn; the lower number of ``priority`` comes first.

        Raises ``Problem``: ``overloaded`` or ``rate_limit_exceeded``.

        Being cancelled gives the turn up, whether it had come or not.
        """
        entry = Entry(id=id, tenant=principal.tenant, cost=max(1, cost), weight=principal.weight, priority=-priority)
        waiting = [other for other, _ in self._waiting.values()]
        verdict, self._shares = arrive(entry, waiting, self._room(), self._rules, self._shares, self._clock.now())
        if verdict.shed is not None:
            _, turn = self._waiting.pop(verdict.shed.id)
            with suppress(asyncio.InvalidStateError):
                turn.set_exception(_refusal(verdict, "Other requests of this tenant wait already"))
        if verdict.action == "refuse":
            raise _refusal(verdict, "There is more to do than can be done")
        if verdict.action == "go":
            self._start(verdict.entry)
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[id] = verdict.entry, turn
        self._one_waits()
        self._note_full()
        try:
            async with asyncio.timeout(self._rules.max_wait_s):
                await turn
        except BaseException as error:
            if self._waiting.pop(id, None) is None:
                # Its turn came at this very moment.
                self.leave(id)
            self._note_full()
            if isinstance(error, TimeoutError):
                raise _refusal(verdict, f"There was no room within {self._rules.max_wait_s:g} s") from None
            raise

    def leave(self, id: str) -> None:
        """The request has ended, or never had its turn; whoever is next goes on."""
        cost = self._running.pop(id, None)
        if cost is None:
            return
        self._running_tokens -= cost
        self._note_drained(cost)
        self.advance()
        self._note_full()

    def advance(self) -> None:
        """Let those go on that there is room for."""
        while self._waiting:
            waiting = [entry for entry, _ in self._waiting.values()]
            entry, self._shares = next_up(waiting, self._room(), self._rules, self._shares, self._clock.now())
            if entry is None:
                return
            _, turn = self._waiting.pop(entry.id)
            self._start(entry)
            # A request that is being cancelled at this moment gives its turn back by itself.
            with suppress(asyncio.InvalidStateError):
                turn.set_result(None)

    def _start(self, entry: Entry) -> None:
        self._running[entry.id] = entry.cost
        self._running_tokens += entry.cost

    def _room(self) -> Room:
        rate = self._drained_tokens / self._drained_s if self._drained_s else 0.0
        return Room(capacity=self._capacity(), running=self._running_tokens, drained_per_s=rate)

    def _note_drained(self, tokens: int) -> None:
        if self._full_since is None:
            return
        now = self._clock.now()
        passed = now - self._full_since
        kept = math.exp(-passed / _RATE_WINDOW_S)
        self._drained_tokens = kept * self._drained_tokens + tokens
        self._drained_s = kept * self._drained_s + passed
        self._full_since = now

    def _note_full(self) -> None:
        """Somebody waits, or nobody any more."""
        if not self._waiting:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = self._clock.now()


def capacity_of(replicas: Replicas, model: str) -> int | None:
    """Tokens that may be under way at the model's ready replicas; ``None`` where one says nothing of its KV cache."""
    try:
        served = replicas.find(model).replicas
    except Problem:
        return None  # no more: whoever waits for it is told so by the next stage
    total = 0
    for state in served:
        if state.routable and state.load is not None:
            if not state.load.kv_blocks_total:
                return None
            total += state.load.kv_blocks_total * state.load.kv_block_tokens
    return _OVERSUBSCRIBED * total or None


def _refusal(verdict: AdmitVerdict, what: str) -> Problem:
    code = "overloaded" if verdict.shed is None else "rate_limit_exceeded"
    return Problem(code, f"{what}: {verdict.why}.", retry_after_s=verdict.retry_after_s)
