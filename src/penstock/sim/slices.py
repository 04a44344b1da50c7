"""The store of slices in memory: what ``store/take.lua`` does, for worlds whose time is simulated.

In: asks of several gateways; out: what each is given.  ``tests/laws/test_slices_on_redis.py`` holds the two equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from penstock.wire.slices import SEED_S, SETTLE_S, SHARE_OF_LEFT, Answer, Ask, Taken

_Record = list[tuple[int, int]]


class MemorySlices:
    """One store.  ``now``: its clock.  ``forget`` is a restart without memory, ``restart`` one with."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._run = 0
        self._since: float | None = None
        self._rules: dict[str, dict[str, _Record]] = {}
        self._seeded: dict[str, float] = {}

    def restart(self) -> None:
        self._run += 1
        self._since = None

    def forget(self) -> None:
        self.restart()
        self._rules.clear()
        self._seeded.clear()

    def take(self, writer: str, asks: Sequence[Ask]) -> Taken:
        """What ``ports.Slices.take`` answers to this writer."""
        now = self._now()
        if self._since is None or self._since > now:
            self._since = now
        answers = [self._take(writer, ask, now, self._since) for ask in asks]
        return Taken(now, f"{self._run} {self._since:.6f}", answers)

    def held(self, key: str) -> int:
        """What all writers hold of a rule, by its key with its window's begin."""
        return sum(_live(record, self._now()) for record in self._rules.get(key, {}).values())

    def _take(self, writer: str, ask: Ask, now: float, since: float) -> Answer:
        if ask.end and not ask.begin <= now < ask.end:
            return Answer("another window")
        key = f"{ask.key}|{ask.begin}" if ask.end else ask.key
        rule = self._rules.setdefault(key, {})
        settling = now < since + SETTLE_S
        till = ask.end or math.ceil(now + ask.hold_s)
        if 0 < ask.counts_from < since and self._seeded.get(key) != since:
            if ask.seeds is None:
                settling = settling or now < since + SEED_S
            else:
                for other, used in ask.seeds.items():
                    if used > _live(rule.get(other, []), now):
                        rule[other] = [(till, used)]
                self._seeded[key] = since
        others = [slot for other, record in rule.items() if other != writer for slot in record if slot[0] > now]
        own = [slot for slot in ask.slots if slot[0] > now]
        left = ask.amount - sum(amount for _, amount in (*others, *own)) - ask.rest
        given, bonus, unmet = _give(ask, 0 if settling else max(0, left))
        left = max(0, left - given - bonus)
        given += bonus
        if ask.rest + given:
            own.append((till, ask.rest + given))
        rule[writer] = own
        entries = sorted([*others, *own])
        fits = tuple(
            _fits_s(need, left, entries, ask, now) if place in unmet else None for place, need in enumerate(ask.needs)
        )
        whole_s = math.ceil((entries[-1][0] - now) * 1000) / 1000 if entries else 0.0
        return Answer("settling" if settling else "given", given, left, whole_s, fits)


def _give(ask: Ask, room: int) -> tuple[int, int, set[int]]:
    """For the needs, beyond them, and the places of those that are not met."""
    free, given, unmet = ask.free, 0, set()
    for place, need in enumerate(ask.needs):
        more = max(0, need - free)
        if more <= room:
            free -= need - more
            room, given = room - more, given + more
        else:
            unmet.add(place)
    return given, min(ask.extra, room // SHARE_OF_LEFT), unmet


def _fits_s(need: int, left: int, entries: _Record, ask: Ask, now: float) -> float:
    if ask.end:
        return math.ceil((ask.end - now) * 1000) / 1000
    for until, amount in entries:
        left += amount
        if left >= need:
            return math.ceil((until - now) * 1000) / 1000
    return float(ask.hold_s)


def _live(record: _Record, now: float) -> int:
    return sum(amount for until, amount in record if until > now)
