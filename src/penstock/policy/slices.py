"""How much of a shared limit a gateway holds for itself, and what it says of it to the store of slices.

In: what it has granted and how fast, now; out: an ``Ask``.  Pure, but for the share that it is told to remember with.
Argued in docs/decisions/014-slices.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.config.tenants import Window
from penstock.policy.account import Account, Moment, begin_of, rolled, window_of
from penstock.policy.limit import Rule
from penstock.wire.slices import MOST, Answer, Ask

LEASE_S = 10.0
"""A slice may be granted from for so long; what a gateway held that died counts no longer than that more."""
_HORIZON_S = 1.0
"""About how long a slice lasts at the pace of late."""
_IDLE_S = 2.0
"""What nobody has asked of for so long goes back."""
_RESTATE_S = 1.0
_LEAST_INTERVAL_S = 0.25
_PREFETCH_S = 0.05
_REFUSED_S = 0.1
"""Who asks for as much as was refused so lately is refused by the same answer."""
_FORGET_S = 120.0


@dataclass(slots=True, eq=False)
class Share:
    """What a gateway holds of one rule.  Times are of the steady clock.

    ``free`` may be granted until ``until``, in the window that begins at ``begin`` (0: there is none).
    What was granted in a second after ``stated`` has not been stated to the store yet.
    ``waiting``: calls that wait for more.  ``left`` is what no gateway holds, as last heard.  ``unusable``: the store's
    book of it is somebody else's, so that what is held may still be granted and there is no more.
    """

    rule: Rule
    free: int = 0
    until: float = -math.inf
    begin: int = 0
    stated: int = -1
    stated_at: float = -math.inf
    used_at: float = -math.inf
    used: int = 0
    pace: float = 0.0
    largest: int = 0
    changed: bool = False
    seeded: bool = False
    waiting: int = 0
    left: int = 0
    whole_at: float = 0.0
    refused: int = 0
    refused_at: float = -math.inf
    fits_at: float = 0.0
    unusable: bool = False

    @property
    def target(self) -> int:
        """How much it is good to hold: what is used in a while, or one more of the largest requests."""
        return max(self.largest, math.ceil(self.pace * _HORIZON_S))

    def room(self, now: Moment) -> int:
        """How much may be granted here now."""
        return self.free if now.steady < self.until and self.begin == begin_now(self.rule.window, now) else 0

    def spend(self, amount: int, now: Moment) -> bool:
        """So much was granted; whether it is time to fetch more."""
        self.free -= amount
        self.used += amount
        self.largest = max(self.largest, amount)
        self.used_at, self.changed = now.steady, True
        return 2 * self.free < self.target and now.steady >= self.stated_at + _PREFETCH_S

    def give_back(self, before: Account, after: Account) -> None:
        """Grants were settled.  What the store still takes for a slice may be granted again.

        A minute's grant that was stated counts until its own minute ends, and no later one may take its place.
        """
        self.changed = True
        if self.rule.window == "minute":
            kept = dict(after.slots)
            self.free += sum(held - kept.get(mark, 0) for mark, held in before.slots if mark > self.stated)
        elif before.window == after.window:
            self.free += before.granted - after.granted

    def is_due(self, now: Moment, account: Account) -> bool:
        """Whether the store should hear of it though nobody waits."""
        since = now.steady - self.stated_at
        if self.changed and since >= _RESTATE_S:
            return True
        if self.free and now.steady - self.used_at >= _IDLE_S:
            return True
        return self.rule.window is None and account.granted > 0 and since >= LEASE_S / 4

    def is_over(self, now: Moment, account: Account) -> bool:
        """Nothing of it is worth remembering."""
        idle = now.steady - max(self.used_at, self.stated_at) > _FORGET_S
        return idle and not (self.free or account.granted or self.changed or self.waiting)

    def answered(self, ask: Ask, answer: Answer, sent: float, now: float) -> None:
        """What was asked at ``sent`` was answered when the store's clock showed ``now``."""
        self.unusable = answer.status == "unusable"
        if self.unusable:
            self.changed = True  # it was not written down: say it again
        if answer.status in ("another window", "unusable"):
            return
        self.free += answer.given
        self.until = sent + (ask.end - now if ask.end else LEASE_S)
        self.left, self.whole_at = answer.left, sent + answer.whole_s
        self.seeded = self.seeded or ask.seeds is not None
        refused = [(need, fits_s) for need, fits_s in zip(ask.needs, answer.fits_s, strict=True) if fits_s is not None]
        if refused and answer.status == "given":
            self.refused, fits_s = min(refused)
            self.refused_at, self.fits_at = sent, sent + (1.0 if self.rule.window is None else fits_s)

    def is_refused(self, wanted: int, now: Moment) -> bool:
        """The store has just said that it has not so much."""
        return now.steady < self.refused_at + _REFUSED_S and wanted >= self.refused


def state(
    share: Share, account: Account, needs: tuple[int, ...], now: Moment, offset_s: float, seeds: dict[str, int] | None
) -> Ask:
    """All that this gateway holds of the rule, and what it wants.  ``offset_s``: the store's clock beyond ours.

    What is more than it needs it lets go at this moment, before the store hears of it: that way round nothing is
    granted twice.
    """
    rule = share.rule
    begin = begin_now(rule.window, now)
    if share.begin != begin or now.steady >= share.until:
        share.free = 0
    share.begin = begin
    idle = not needs and now.steady - share.used_at >= _IDLE_S
    passed = max(now.steady - share.stated_at, _LEAST_INTERVAL_S)
    share.pace = max(share.used / passed, share.pace / 2)
    if not needs and share.free > 2 * share.target:
        share.free = share.target
    if idle:
        share.free, share.pace = 0, 0.0
    share.used, share.changed = 0, False
    share.stated, share.stated_at = int(now.steady), now.steady
    extra = 0 if idle else share.target if needs else max(0, share.target - share.free)
    account = rolled(rule.window, account, now)
    slots: tuple[tuple[int, int], ...] = ()
    if rule.window == "minute":
        slots = tuple((math.ceil(mark + 61 + offset_s), amount) for mark, amount in account.slots if amount)
    minute = rule.window == "minute"
    return Ask(
        key=rule.key,
        amount=min(rule.amount, MOST),
        slots=slots,
        rest=share.free if minute else share.free + account.granted,
        free=share.free,
        needs=needs,
        extra=extra,
        begin=begin,
        end=int(begin_of(rule.window, window_of(rule.window, now.wall) + 1)) if begin and rule.window else 0,
        hold_s=int(LEASE_S) + (61 if minute else 0),
        counts_from=int(now.steady + offset_s) - 61 if minute else begin,
        seeds=None if share.seeded else seeds,
    )


def begin_now(window: Window | None, now: Moment) -> int:
    """When the day or month began that is now; 0 for what has none."""
    if window is None or window == "minute":
        return 0
    return int(begin_of(window, window_of(window, now.wall)))
