"""What a gateway holds of a shared limit, and what it says of it."""

from __future__ import annotations

import pytest

from penstock.config.tenants import Limit, Scope, Unit, Window
from penstock.policy.account import Account, Moment
from penstock.policy.limit import Amounts, Rule, reserve, rules_of, settle
from penstock.policy.slices import LEASE_S, Share, state
from penstock.wire.slices import Answer

WALL = 1_798_761_600.0 - 1000


def rule_of(unit: Unit, window: Window | None, amount: int = 1000) -> Rule:
    [rule] = rules_of([Scope(name="tenant:t", limits=(Limit(unit=unit, amount=amount, window=window),))], "m")
    return rule


def at(steady: float) -> Moment:
    return Moment(steady, WALL + steady)


def filled(rule: Rule, free: int, now: Moment) -> Share:
    """A share that was just given so much."""
    share = Share(rule)
    ask = state(share, Account(), (free,), now, WALL, None)
    share.answered(ask, Answer("given", free, 0, 0.0, (None,)), now.steady, now.wall)
    return share


def granted(share: Share, amount: int, now: Moment) -> tuple[Account, list]:
    want = Amounts(**{share.rule.unit: amount})
    verdict, [account], grant = reserve([share.rule], [Account()], want, now, [share.room(now)])
    assert verdict.granted and grant is not None
    share.spend(amount, now)
    return account, [grant]


@pytest.mark.parametrize(("window", "free"), [("minute", 40), ("day", 100), (None, 100)])
def test_what_was_stated_of_a_minute_is_not_granted_again(window: Window | None, free: int) -> None:
    """The store counts it until its own minute ends, which a later grant would outlast; days and leases it does not
    count by the second.
    """
    share = filled(rule_of("concurrency" if window is None else "tokens", window), 100, at(5.0))
    account, grants = granted(share, 60, at(6.5))
    state(share, account, (), at(7.0), WALL, None)
    [after], _ = settle([share.rule], [account], grants, Amounts())
    share.give_back(account, after)
    assert share.free == free


def test_what_was_not_stated_yet_is_free_again() -> None:
    """The store still takes it for a part of the slice."""
    share = filled(rule_of("tokens", "minute"), 100, at(5.0))
    account, grants = granted(share, 60, at(7.0))
    [after], _ = settle([share.rule], [account], grants, Amounts())
    share.give_back(account, after)
    assert share.free == 100


def test_a_slice_ends_with_its_lease_and_its_window() -> None:
    """After that there is no room, and what is stated holds nothing of it."""
    minute = filled(rule_of("tokens", "minute"), 100, at(5.0))
    assert minute.room(at(4.99 + LEASE_S)) == 100 and minute.room(at(5.0 + LEASE_S)) == 0
    assert state(minute, Account(), (), at(5.0 + LEASE_S), WALL, None).rest == 0
    day = filled(rule_of("tokens", "day"), 100, at(5.0))
    assert day.room(at(999.9)) == 100 and day.room(at(1000.0)) == 0


def test_what_is_granted_of_a_minute_counts_a_minute_and_a_little() -> None:
    """By the store's clock, from the end of its second on; what is free counts for the lease longer."""
    share = filled(rule_of("tokens", "minute"), 100, at(5.0))
    account, _ = granted(share, 60, at(6.9))
    ask = state(share, account, (), at(7.0), 0.25, None)
    assert ask.slots == ((6 + 61 + 1, 60),) and (ask.rest, ask.free) == (40, 40)
    assert ask.hold_s == LEASE_S + 61


def test_what_nobody_asks_of_goes_back() -> None:
    """All of it after two seconds; and at once what is more than twice as much as is used."""
    share = filled(rule_of("tokens", "minute"), 100, at(5.0))
    account, _ = granted(share, 10, at(5.1))
    assert share.is_due(at(7.2), account)
    ask = state(share, account, (), at(7.2), WALL, None)
    assert (ask.rest, ask.extra, share.free) == (0, 0, 0)
    busy = filled(rule_of("tokens", "minute"), 1000, at(5.0))
    account, _ = granted(busy, 10, at(6.0))
    assert state(busy, account, (), at(6.1), WALL, None).free == busy.target < 100
