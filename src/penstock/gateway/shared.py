"""Limits that several gateways share: the accounts of this one, and the slices that it may grant of by itself.

In: as ``Limits``, and the store of slices; out: the same verdicts.  A call whose slices have room waits for nobody;
they are filled up behind its back, and only who finds one empty waits, within a bound.
Argued in docs/decisions/014-slices.md.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from typing import Any

from penstock.config.tenants import Window
from penstock.cost.money import Tariff
from penstock.events.list import SharingChanged, UnusableLimitsChanged
from penstock.gateway.limits import Limits, Used, by_rule
from penstock.gateway.waiting import WAIT_S, Waiter, away, refusal
from penstock.policy.account import Moment, rolled, window_of
from penstock.policy.limit import Amounts, Grant, Rule, Standing, Verdict, reserve, settle
from penstock.policy.slices import Share, begin_now, state
from penstock.ports import Clock, Emit, Slices
from penstock.wire.errors import Problem
from penstock.wire.slices import Answer, Taken

_BEAT_S = 0.25
_AGAIN_S = 0.1
_PAUSE_S = 0.02
_MOST_DELAY_S = 60.0
"""By less, the store's clock only seems to go back: an earlier answer took longer."""
_MOST_AT_ONCE = 200
_log = logging.getLogger(__name__)


class SharedLimits(Limits):
    """One gateway's part of limits that others grant of, too.  ``keep`` has to run all the while.

    Days and months are those of the store's clock, as soon as it was heard once; ``wall_clock`` is for until then.
    """

    def __init__(
        self, clock: Clock, wall_clock: Callable[[], float], tariff: Tariff, slices: Slices, emit: Emit
    ) -> None:
        super().__init__(clock, wall_clock, tariff)
        self._slices = slices
        self._emit = emit
        self._shares: dict[str, Share] = {}
        self._due: dict[str, Share] = {}
        self._waiters: list[Waiter] = []
        self._wake = asyncio.Event()
        self._offset_s: float | None = None
        self._epoch = ""
        self._heard_at = clock.now()
        self._lost: bool | None = None  # until it was asked
        self._unusable: set[str] = set()
        self._seeds: dict[Window, tuple[int, dict[str, dict[str, int]]]] = {}
        self._recalling: asyncio.Task[None] | None = None

    def wall(self) -> float:
        if self._offset_s is None:
            return super().wall()
        return self._clock.now() + self._offset_s

    def recall(self, window: Window, used: Iterable[Used]) -> None:
        """What the ledger has of the ``window`` that is now, to be told to a store that began later."""
        self._seeds[window] = (begin_now(window, self._moment()), by_rule(window, used))

    def take(self, rules: tuple[Rule, ...], want: Amounts) -> tuple[Verdict, Grant | None]:
        now = self._moment()
        shares = [self._share(rule) for rule in rules]
        # Who waits already comes first.
        verdict, grant = self._grant(rules, shares, want, now, [0 if s.waiting else s.room(now) for s in shares])
        if verdict.short:
            known = [s for s in shares if s.room(now) < want[s.rule.field] and s.is_refused(want[s.rule.field], now)]
            if known:
                return refusal(rules, known, want, now), None
        return verdict, grant

    async def fetch(self, rules: tuple[Rule, ...], want: Amounts) -> tuple[Verdict, Grant | None]:
        if self._lost and self._clock.now() > self._heard_at + WAIT_S:
            return away(_first(rules, want), want), None
        waiter = Waiter(rules, want, asyncio.get_running_loop().create_future())
        shares = [self._share(rule) for rule, _ in waiter.needs()]
        self._waiters.append(waiter)
        for share in shares:
            share.waiting += 1
        self._wake.set()
        try:
            async with asyncio.timeout(WAIT_S):
                return await waiter.turn
        except BaseException as error:
            turn = waiter.turn
            granted = turn.result()[1] if turn.done() and not turn.cancelled() else None
            if granted is not None:
                # Its turn came at this very moment.
                self.settle(rules, [granted], Amounts())
            if isinstance(error, TimeoutError):
                return away(_first(rules, want), want), None
            raise
        finally:
            for share in shares:
                share.waiting -= 1
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def settle(self, rules: tuple[Rule, ...], grants: list[Grant], keep: Amounts) -> list[Grant]:
        before = self._read(rules)
        after, left = settle(rules, before, grants, keep)
        self._write(rules, after)
        for rule, was, is_now in zip(rules, before, after, strict=True):
            if was is not is_now:
                self._share(rule).give_back(was, is_now)
        return left

    def tightest(self, rules: tuple[Rule, ...]) -> list[Standing]:
        now, found = self._clock.now(), []
        for unit in ("requests", "tokens"):
            shares = [self._share(rule) for rule in rules if rule.unit == unit]
            if shares:
                least = min(shares, key=lambda share: share.left + share.free)
                left, reset_s = least.left + least.free, max(0.0, least.whole_at - now)
                found.append(Standing(least.rule, left, reset_s if left < least.rule.amount else 0.0))
        return found

    async def keep(self, recall: Callable[[Limits], Coroutine[Any, Any, None]]) -> None:
        """Keep the slices filled and the store informed.  ``recall`` asks the ledger, whenever the store may have
        forgotten what was used before.
        """
        try:
            while True:
                try:
                    await self._exchange(recall)
                except Problem as problem:
                    if not self._lost:
                        _log.warning("limits go by the slices that are held: %s", problem.message)
                    self._note(lost=True)
                    await asyncio.sleep(_AGAIN_S)
                    continue
                if self._recalling is not None and self._recalling.done():
                    self._recalling.result()
                if not self._wake.is_set() and any(not waiter.turn.done() for waiter in self._waiters):
                    await asyncio.sleep(_PAUSE_S)  # the store settles, or another window begins
                    continue
                await self._rest()
        finally:
            if self._recalling is not None:
                self._recalling.cancel()

    def _note(self, *, lost: bool) -> None:
        if lost is not self._lost:
            self._lost = lost
            self._emit(SharingChanged(shared=not lost))

    def _note_unusable(self, share: Share) -> None:
        key = share.rule.key
        if share.unusable is (key in self._unusable):
            return
        if share.unusable:
            self._unusable.add(key)
            _log.error("what the store has of the limit %s is not ours: remove its key, and it is shared again", key)
        else:
            self._unusable.discard(key)
            _log.warning("the limit %s is shared again", key)
        self._emit(UnusableLimitsChanged(num_limits=len(self._unusable)))

    async def _rest(self) -> None:
        """Until somebody waits or a slice runs low, and never longer than a beat."""
        try:
            async with asyncio.timeout(_BEAT_S):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _exchange(self, recall: Callable[[Limits], Coroutine[Any, Any, None]]) -> None:
        """State what is due, and serve those that wait."""
        self._wake.clear()
        now = self._moment()
        asked = self._needs(now)
        for begin in range(0, max(1, len(asked)), _MOST_AT_ONCE):
            part = asked[begin : begin + _MOST_AT_ONCE]
            offset_s = 0.0 if self._offset_s is None else self._offset_s
            asks = [
                state(share, self.account(share.rule), needs, now, offset_s, self._seeds_of(share, now))
                for share, needs in part
            ]
            sent = self._clock.now()
            try:
                taken = await self._slices.take(asks)
            except Problem:
                for share, _ in asked[begin:]:
                    share.changed = True
                raise
            self._hear(taken, sent, recall)
            for (share, _), ask, answer in zip(part, asks, taken.answers, strict=True):
                share.answered(ask, answer, sent, taken.now)
                self._note_unusable(share)
            self._serve(part, taken.answers)

    def _needs(self, now: Moment) -> list[tuple[Share, tuple[int, ...]]]:
        """The shares that the store should hear of, with what is waited for of each."""
        needs: dict[str, list[int]] = {}
        for waiter in self._waiters:
            for rule, wanted in waiter.needs():
                needs.setdefault(rule.key, []).append(wanted)
        due, self._due = self._due, {}
        for key, share in list(self._shares.items()):
            account = self._accounts[key] = rolled(share.rule.window, self.account(share.rule), now)
            if share.is_over(now, account):
                del self._shares[key], self._accounts[key]
            elif share.is_due(now, account):
                due[key] = share
        keys = [*needs, *(key for key in due if key not in needs)]
        return [(self._shares[key], tuple(needs.get(key, ()))) for key in keys if key in self._shares]

    def _hear(self, taken: Taken, sent: float, recall: Callable[[Limits], Coroutine[Any, Any, None]]) -> None:
        # The store looked at its clock after it was sent to, so its clock shows at most this much more than ours:
        # windows end here no later, and what is granted counts no shorter, than there.
        offset_s = taken.now - sent
        if self._offset_s is None or not self._ends_back(offset_s - self._offset_s):
            self._offset_s = offset_s
        self.informed.set()
        self._heard_at = self._clock.now()
        if self._lost:
            _log.warning("limits are shared again")
        self._note(lost=False)
        if taken.epoch == self._epoch:
            return
        self._epoch = taken.epoch
        for key, share in self._shares.items():
            share.seeded = False
            self._due[key] = share
        self._wake.set()
        self._seeds.clear()
        if self._recalling is not None:
            self._recalling.cancel()
        self._recalling = asyncio.create_task(recall(self))

    def _ends_back(self, change_s: float) -> bool:
        """Whether that little a change would lead back into a day that has ended here."""
        wall = self.wall()
        return -_MOST_DELAY_S < change_s < 0 and window_of("day", wall + change_s) != window_of("day", wall)

    def _serve(self, part: list[tuple[Share, tuple[int, ...]]], answers: Sequence[Answer]) -> None:
        """Those whose slices have room now, in their order; and those that were told that there is none."""
        now = self._moment()
        settled = {share.rule.key for (share, _), answer in zip(part, answers, strict=True) if answer.status == "given"}
        for waiter in self._waiters:
            if waiter.turn.done():
                continue
            shares = [self._share(rule) for rule in waiter.rules]
            rooms = [share.room(now) for share in shares]
            verdict, grant = self._grant(waiter.rules, shares, waiter.want, now, rooms)
            if verdict.short:
                refused = waiter.refusal(shares, settled, now)
                if refused is None:
                    continue
                verdict = refused
            waiter.turn.set_result((verdict, grant))

    def _grant(
        self, rules: tuple[Rule, ...], shares: list[Share], want: Amounts, now: Moment, rooms: list[int]
    ) -> tuple[Verdict, Grant | None]:
        verdict, accounts, grant = reserve(rules, self._read(rules), want, now, rooms)
        self._write(rules, accounts)
        if grant is not None:
            for share in shares:
                amount = want[share.rule.field]
                if amount and share.spend(amount, now):
                    self._due[share.rule.key] = share
                    self._wake.set()
        return verdict, grant

    def _share(self, rule: Rule) -> Share:
        share = self._shares.get(rule.key)
        if share is None:
            share = self._shares[rule.key] = Share(rule)
        share.rule = rule  # its amount may have been changed
        return share

    def _seeds_of(self, share: Share, now: Moment) -> dict[str, int] | None:
        window = share.rule.window
        if window is None or window not in self._seeds:
            return None
        begin, seeds = self._seeds[window]
        return seeds.get(share.rule.key, {}) if begin == begin_now(window, now) else None


def _first(rules: tuple[Rule, ...], want: Amounts) -> Rule:
    """One that something is wanted of."""
    return next(rule for rule in rules if want[rule.field])
