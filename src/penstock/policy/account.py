"""What one limit has granted: an account, in a sliding minute, a day, a month, or at a time.

In: an account, an amount, now; out: the account after it, or by when it is whole again.  Pure.

A minute is a sliding one: a grant counts for 60 to 61 s of the steady clock, so that no 60 s, wherever they begin, hold
more than the amount.  Days and months are those of UTC.  A wall clock set forward frees at most the one window that it
leaves; set back, it frees nothing, and what was granted goes on counting until the window that it shows has ended.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

import msgspec

from penstock.config.tenants import Window

_MINUTE_S = 60
_DAY_S = 86_400
_CONCURRENCY_RETRY_S = 1.0
"""Nobody knows when a running request ends; this is how soon asking again is no nuisance."""


class Moment(NamedTuple):
    """``steady``: seconds of a clock that never goes back; ``wall``: seconds since the epoch, which may jump."""

    steady: float
    wall: float


class Account(msgspec.Struct, frozen=True):
    """What one rule has granted and not got back, as (mark, amount), oldest first; ``granted`` is their sum.

    A mark is the second of a grant for minutes, the count of windows so far for days and months, 0 without a window.
    ``window``: the day or month that is counted in.
    """

    granted: int = 0
    slots: tuple[tuple[int, int], ...] = ()
    window: int = 0


def rolled(counted: Window | None, account: Account, now: Moment) -> Account:
    """The account without what counts no more."""
    if counted is None:
        return account
    if counted == "minute":
        oldest = int(now.steady) - _MINUTE_S
        if not account.slots or account.slots[0][0] >= oldest:
            return account
        live = tuple(slot for slot in account.slots if slot[0] >= oldest)
        return Account(sum(amount for _, amount in live), live)
    window = window_of(counted, now.wall)
    if window == account.window:
        return account
    if window < account.window:
        # The clock was set back.  Waiting for the later window again could take for ever; starting afresh would free
        # what was granted: so it goes on counting, in the window that the clock shows now.
        return Account(account.granted, account.slots, window)
    ended = account.slots[-1][0] if account.slots else -1
    return Account(0, ((ended + 1, 0),), window)


def carried(window: Window, account: Account, amount: int, now: Moment) -> Account:
    """The account with ``amount`` more in the window that is now, which nobody will give back."""
    account = rolled(window, account, now)
    return charged(account, mark_of(window, account, now), amount)


def charged(account: Account, mark: int, amount: int) -> Account:
    """With ``amount`` more at ``mark``; no room is looked for."""
    if not amount:
        return account
    slots = account.slots
    if slots and slots[-1][0] == mark:
        slots = (*slots[:-1], (mark, slots[-1][1] + amount))
    else:
        slots = (*slots, (mark, amount))
    return Account(account.granted + amount, slots, account.window)


def returned(account: Account, mark: int, amount: int) -> Account:
    """Without ``amount`` of what was granted at ``mark``; as it is where that counts no more."""
    slots = account.slots
    for index in range(len(slots) - 1, -1, -1):  # most of what is returned was granted just now
        if slots[index][0] == mark:
            held = slots[index][1]
            assert amount <= held, "more is returned than was granted"
            slots = (*slots[:index], (mark, held - amount), *slots[index + 1 :])
            return Account(account.granted - amount, slots, account.window)
    return account


def mark_of(window: Window | None, account: Account, now: Moment) -> int:
    """Where an account, rolled to now, has what it grants now."""
    if window is None:
        return 0
    return int(now.steady) if window == "minute" else account.slots[-1][0]


def fits_after(window: Window | None, account: Account, excess: int, now: Moment) -> float:
    """In how many seconds it has got rid of ``excess``, if nobody asks."""
    if window is None:
        return _CONCURRENCY_RETRY_S
    if window != "minute":
        return whole_after(window, account, now)
    for second, amount in account.slots:
        excess -= amount
        if excess <= 0:
            return second + _MINUTE_S + 1 - now.steady
    raise AssertionError("an account's slots add up to less than it has granted")


def whole_after(window: Window | None, account: Account, now: Moment) -> float:
    """In how many seconds it is empty, if nobody asks."""
    if not account.granted:
        return 0.0
    if window is None:
        return _CONCURRENCY_RETRY_S
    if window == "minute":
        newest = next(second for second, amount in reversed(account.slots) if amount)
        return newest + _MINUTE_S + 1 - now.steady
    return begin_of(window, window_of(window, now.wall) + 1) - now.wall


def window_of(window: Window, wall: float) -> int:
    """Which day or month of UTC ``wall`` lies in: a number that grows by one with each."""
    if window == "day":
        return int(wall // _DAY_S)
    return _month_of(int(wall // _DAY_S))


@lru_cache(maxsize=16)
def _month_of(day: int) -> int:
    # Asked several times per request, and another answer once a month.
    date = datetime.fromtimestamp(day * _DAY_S, UTC)
    return date.year * 12 + date.month - 1


def begin_of(window: Window, number: int) -> float:
    """When that day or month begins, in seconds since the epoch."""
    if window == "day":
        return float(number * _DAY_S)
    return datetime(number // 12, number % 12 + 1, 1, tzinfo=UTC).timestamp()
