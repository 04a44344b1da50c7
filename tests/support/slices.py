"""Gateways that share limits in a simulated world, and a second book of what they grant, by the true time.

In: rules, a seed; out: calls that run at each gateway, a store that is slow, away or forgets, gateways that die.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random

from penstock.config.tenants import Limit, Scope
from penstock.cost.money import Tariff
from penstock.events.list import Event
from penstock.gateway.limits import Limits
from penstock.gateway.shared import SharedLimits
from penstock.policy.account import window_of
from penstock.policy.limit import Amounts, Grant, Rule, rules_of
from penstock.sim.loop import LoopClock
from penstock.sim.slices import MemorySlices
from penstock.wire.errors import Problem
from penstock.wire.slices import Answer, Ask, Taken

BEGIN = 1_798_761_600.0 - 120  # two minutes before the new year of UTC


def true_time() -> float:
    return BEGIN + asyncio.get_running_loop().time()


@dataclass(eq=False)
class Road:
    """The way from one gateway to the store.  ``delay_s``: each way, at most.

    ``unusable``: what the store has of these rules is not ours.
    """

    store: MemorySlices
    writer: str
    dice: Random
    delay_s: float = 0.002
    away: bool = False
    loses: float = 0.0
    asked: int = 0
    unusable: frozenset[str] = frozenset()

    async def take(self, asks: Sequence[Ask]) -> Taken:
        self.asked += 1
        await asyncio.sleep(self.dice.uniform(0, self.delay_s))
        if self.away:
            raise Problem("limits_unavailable", "away")
        taken = self.store.take(self.writer, [ask for ask in asks if ask.key not in self.unusable])
        rest = iter(taken.answers)
        answers = [Answer("unusable") if ask.key in self.unusable else next(rest) for ask in asks]
        taken = taken._replace(answers=answers)
        await asyncio.sleep(self.dice.uniform(0, self.delay_s))
        if self.dice.random() < self.loses:
            raise Problem("limits_unavailable", "the answer was lost")
        return taken


@dataclass
class Entry:
    """One grant in the second book: when, how much of each unit is still charged, and whether its call runs."""

    at: float
    amounts: Amounts
    runs: bool = True


@dataclass(eq=False)
class SharedGateway:
    """One gateway: production limits over its road, and the calls that it runs."""

    road: Road
    limits: SharedLimits
    book: list[Entry]
    events: list[Event]
    calls: set[asyncio.Task[None]] = field(default_factory=set)
    keeping: asyncio.Task[None] | None = None
    refused: list[str] = field(default_factory=list)
    waited: int = 0

    def start(self, used: Sequence[object] = ()) -> None:
        async def recall(limits: Limits) -> None:
            for window in ("minute", "day", "month"):
                limits.recall(window, used)  # type: ignore[arg-type]

        self.keeping = asyncio.create_task(self.limits.keep(recall))

    async def kill(self) -> None:
        """As by SIGKILL: nothing is given back, and what runs ends."""
        for task in [*self.calls, *([self.keeping] if self.keeping else [])]:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def stop(self) -> None:
        assert self.keeping is not None
        self.keeping.cancel()
        with suppress(asyncio.CancelledError):
            await self.keeping

    def call(self, scopes: Sequence[Scope], want: Amounts, lasts_s: float, uses: float) -> None:
        """Start one call that keeps ``uses`` of what it was granted."""
        task = asyncio.create_task(self._call(scopes, want, lasts_s, uses))
        self.calls.add(task)
        task.add_done_callback(self.calls.discard)

    async def _call(self, scopes: Sequence[Scope], want: Amounts, lasts_s: float, uses: float) -> None:
        rules = rules_of(scopes, "m")
        verdict, grant = self.limits.take(rules, want)
        if verdict.short:
            self.waited += 1
            verdict, grant = await self.limits.fetch(rules, want)
        if grant is None:
            self.refused.append("away" if verdict.away else "refused")
            return
        entry = Entry(true_time(), grant.amounts)
        self.book.append(entry)
        try:
            await asyncio.sleep(lasts_s)
        except asyncio.CancelledError:
            entry.amounts = entry.amounts._replace(concurrency=0)
            raise
        entry.amounts = Amounts(*(int(amount * uses) for amount in want))._replace(
            requests=want.requests, concurrency=0
        )
        self._settle(rules, grant, entry.amounts)

    def _settle(self, rules: tuple[Rule, ...], grant: Grant, keep: Amounts) -> None:
        self.limits.settle(rules, [grant], keep)


class World:
    """Several gateways before one store."""

    def __init__(self, seed: int, *limits: Limit, gateways: int = 3, delay_s: float = 0.002) -> None:
        self.dice = Random(seed)
        self.scopes = [Scope(name="tenant:t", limits=limits)]
        self.rules = rules_of(self.scopes, "m")
        self.store = MemorySlices(true_time)
        self.book: list[Entry] = []
        self.delay_s = delay_s
        self.lives = 0
        self.gateways = [self.gateway() for _ in range(gateways)]

    def gateway(self, wall_error_s: float = 0.0) -> SharedGateway:
        self.lives += 1
        road = Road(self.store, f"g{self.lives}", self.dice, self.delay_s)
        events: list[Event] = []
        limits = SharedLimits(LoopClock(), lambda: true_time() + wall_error_s, Tariff(), road, events.append)
        return SharedGateway(road, limits, self.book, events)

    def over(self) -> list[str]:
        """The limits that are exceeded at this moment, by the second book."""
        now, found = true_time(), []
        for rule in self.rules:
            if rule.window is None:
                total = sum(entry.amounts[rule.field] for entry in self.book)
            elif rule.window == "minute":
                total = sum(entry.amounts[rule.field] for entry in self.book if entry.at > now - 60)
            else:
                this = window_of(rule.window, now)
                total = sum(e.amounts[rule.field] for e in self.book if window_of(rule.window, e.at) == this)
            if total > rule.amount:
                found.append(f"{total} of {rule.amount} {rule.unit} per {rule.window} at {now - BEGIN:.3f} s")
        return found

    async def watch(self, found: list[str]) -> None:
        """Look again and again."""
        while True:
            found += self.over()
            await asyncio.sleep(0.25)
