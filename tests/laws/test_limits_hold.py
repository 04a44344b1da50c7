"""Laws of the limits: whatever is reserved, topped up, settled or lost, and whatever the clock shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.config.tenants import Limit, Scope, Window
from penstock.policy.account import Account, Moment, begin_of, window_of
from penstock.policy.limit import NUSD, Amounts, Grant, Rule, Verdict, reserve, rules_of, settle, total

MIDNIGHT_OF_NEW_YEAR = 1_798_761_600.0
ZERO = Amounts()


@dataclass
class Held:
    """One reservation as the test keeps it: grants with their times, apart from the accounts."""

    grants: list[Grant]
    times: list[tuple[Moment, Amounts]]
    running: bool = True


@dataclass
class Bank:
    """The machine around the policy in its least form, and a second book of its own to judge it by."""

    rules: tuple[Rule, ...]
    now: Moment
    accounts: list[Account] = field(default_factory=list)
    held: list[Held] = field(default_factory=list)
    crossings: dict[Window, int] = field(default_factory=lambda: {"day": 0, "month": 0})

    def __post_init__(self) -> None:
        self.accounts = [Account() for _ in self.rules]

    def pass_time(self, steady_s: float, jump_s: float = 0.0) -> None:
        before = self.now
        self.now = Moment(before.steady + steady_s, max(0.0, before.wall + steady_s + jump_s))
        for window in self.crossings:
            self.crossings[window] += window_of(window, self.now.wall) > window_of(window, before.wall)

    def reserve(self, want: Amounts, held: Held | None = None) -> Verdict:
        before = [account.granted for account in self.accounts]
        verdict, self.accounts, grant = reserve(self.rules, self.accounts, want, self.now)
        if grant is None:
            assert all(after.granted <= was for after, was in zip(self.accounts, before, strict=True))
            self.check_refusal(verdict, want)
            return verdict
        held = held or Held([], [])
        if held not in self.held:
            self.held.append(held)
        held.grants.append(grant)
        held.times.append((self.now, want))
        return verdict

    def check_refusal(self, verdict: Verdict, want: Amounts) -> None:
        """It names a rule that is in the way, and says when it will not be."""
        rule = verdict.refused
        assert rule is not None and rule.scope in verdict.why
        account = self.accounts[self.rules.index(rule)]
        wanted = want[rule.field]
        assert account.granted + wanted > rule.amount and verdict.left == max(0, rule.amount - account.granted)
        if verdict.retry_after_s is None:
            assert wanted > rule.amount
        elif rule.window is not None:
            later = Moment(self.now.steady + verdict.retry_after_s, self.now.wall + verdict.retry_after_s)
            assert reserve([rule], [account], want, later)[0].granted
            if rule.window == "minute" and verdict.retry_after_s > 2:
                sooner = Moment(later.steady - 1.5, later.wall)
                assert not reserve([rule], [account], want, sooner)[0].granted

    def settle(self, held: Held, share: float) -> None:
        keep = Amounts(*(int(amount * share) for amount in total(held.grants)))._replace(concurrency=0)
        self.accounts, held.grants = settle(self.rules, self.accounts, held.grants, keep)
        over = [a - b for a, b in zip(total_of(held), keep._replace(concurrency=0), strict=True)]
        for place in range(len(held.times) - 1, -1, -1):
            moment, amounts = held.times[place]
            back = [min(a, o) for a, o in zip(amounts, over, strict=True)]
            over = [o - b for o, b in zip(over, back, strict=True)]
            held.times[place] = (moment, Amounts(*(a - b for a, b in zip(amounts, back, strict=True))))
        held.running = False

    def lose(self, held: Held) -> None:
        """It runs no more, but what it used of its grants nobody knows."""
        keep = total(held.grants)._replace(concurrency=0)
        self.accounts = settle(self.rules, self.accounts, held.grants, keep)[0]
        held.times = [(moment, amounts._replace(concurrency=0)) for moment, amounts in held.times]
        held.grants, held.running = [], False
        self.lost_frees_running()

    def lost_frees_running(self) -> None:
        running = sum(total_of(held).concurrency for held in self.held)
        for rule, account in zip(self.rules, self.accounts, strict=True):
            assert rule.window is not None or account.granted == running

    def check(self) -> None:
        """No limit is exceeded, counted by the times in the second book."""
        for rule, account in zip(self.rules, self.accounts, strict=True):
            assert 0 <= account.granted == sum(amount for _, amount in account.slots)
            counted = [(moment, amounts[rule.field]) for held in self.held for moment, amounts in held.times]
            if rule.window is None:
                assert sum(amount for _, amount in counted) <= rule.amount
            elif rule.window == "minute":
                assert sum(n for moment, n in counted if moment.steady > self.now.steady - 60) <= rule.amount
            else:
                assert sum(n for _, n in counted) <= rule.amount * (1 + self.crossings[rule.window])


def total_of(held: Held) -> Amounts:
    return Amounts(*map(sum, zip(*(amounts for _, amounts in held.times), strict=True)))


wants = st.builds(
    Amounts,
    requests=st.integers(0, 2),
    tokens=st.integers(0, 60),
    usd=st.integers(0, 3 * NUSD),
    concurrency=st.integers(0, 1),
)
steps = st.one_of(
    st.tuples(st.just("reserve"), wants),
    st.tuples(st.just("top up"), st.integers(0, 30), st.integers(1, 30)),
    st.tuples(st.just("settle"), st.integers(0, 30), st.floats(0, 1)),
    st.tuples(st.just("lose"), st.integers(0, 30)),
    st.tuples(st.just("wait"), st.floats(0, 45)),
    st.tuples(st.just("wait"), st.floats(0, 100_000)),
)
jumps = st.tuples(st.just("jump"), st.floats(-5_000_000, 5_000_000))
limits = st.builds(
    lambda unit, window, amount, model: Limit(
        unit=unit, amount=amount, window=None if unit == "concurrency" else window, model=model
    ),
    st.sampled_from(["requests", "tokens", "usd", "concurrency"]),
    st.sampled_from(["minute", "day", "month"]),
    st.integers(0, 100),
    st.sampled_from([None, "m"]),
)
scopes = st.lists(st.lists(limits, max_size=4), min_size=1, max_size=3).map(
    lambda found: [Scope(name=f"tenant:{level}", limits=tuple(limits)) for level, limits in enumerate(found)]
)


def run(bank: Bank, program: list[tuple]) -> None:
    for name, *arguments in program:
        if name == "reserve":
            bank.reserve(arguments[0])
        elif name == "wait":
            bank.pass_time(arguments[0])
        elif name == "jump":
            bank.pass_time(0.0, arguments[0])
        else:
            running = [held for held in bank.held if held.running]
            if running:
                held = running[arguments[0] % len(running)]
                if name == "top up":
                    bank.reserve(Amounts(tokens=arguments[1], usd=arguments[1]), held)
                elif name == "settle":
                    bank.settle(held, arguments[1])
                else:
                    bank.lose(held)
        bank.check()


@settings(max_examples=300, deadline=None)
@given(scopes, st.lists(steps | jumps, max_size=60))
def test_no_order_of_events_exceeds_a_limit(found: list[Scope], program: list[tuple]) -> None:
    """At every instant every limit holds in every scope; a jump of the clock frees at most the window it leaves."""
    run(Bank(rules_of(found, "m"), Moment(5.0, MIDNIGHT_OF_NEW_YEAR - 30)), program)


@settings(max_examples=200, deadline=None)
@given(scopes, st.lists(steps, max_size=60))
def test_everything_is_returned_in_the_end(found: list[Scope], program: list[tuple]) -> None:
    """Once all is settled for nothing used, every account is as it was at first; nothing leaks."""
    rules = rules_of(found, "m")
    bank = Bank(rules, Moment(5.0, MIDNIGHT_OF_NEW_YEAR - 30))
    run(bank, [step for step in program if step[0] not in ("lose", "settle")])
    for held in bank.held:
        bank.settle(held, 0.0)
    assert [account.granted for account in bank.accounts] == [0] * len(rules)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["day", "month"]), st.lists(st.integers(1, 60), max_size=20), st.floats(0, 4_000_000))
def test_a_clock_set_back_loses_at_most_one_window(window: Window, amounts: list[int], back_s: float) -> None:
    """However far back the clock is set, that frees nothing, and the next window that it shows begins whole."""
    [rule] = rules_of([Scope(name="key:a", limits=(Limit(unit="tokens", amount=60, window=window),))], "m")
    bank = Bank((rule,), Moment(0.0, MIDNIGHT_OF_NEW_YEAR))
    for amount in amounts:
        bank.reserve(Amounts(tokens=amount))
    bank.pass_time(0.0, -back_s)
    assert bank.reserve(Amounts(tokens=60)).granted == (not amounts), "setting the clock back freed something"
    wall = bank.now.wall
    bank.pass_time(begin_of(window, window_of(window, wall) + 1) - wall)
    assert bank.reserve(Amounts(tokens=60)).granted


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 4_000_000_000))
def test_windows_follow_one_another(wall: float) -> None:
    """A moment lies between the beginning of its window and that of the next."""
    for window in ("day", "month"):
        number = window_of(window, wall)
        assert begin_of(window, number) <= wall < begin_of(window, number + 1)


@pytest.mark.parametrize("unit", ["requests", "tokens", "usd"])
def test_any_sixty_seconds_hold_no_more_than_the_amount(unit: Literal["requests", "tokens", "usd"]) -> None:
    """Drained at the end of one minute and again in the next, a minute's limit grants nothing twice in 60 s."""
    amount = 10
    [rule] = rules_of([Scope(name="key:a", limits=(Limit(unit=unit, amount=amount, window="minute"),))], "m")
    bank = Bank((rule,), Moment(0.5, MIDNIGHT_OF_NEW_YEAR))
    one = ZERO._replace(**{unit: rule.amount // amount})
    granted: list[float] = []
    for _ in range(2_000):
        while bank.reserve(one).granted:
            granted.append(bank.now.steady)
        bank.pass_time(0.3)
    for begin in granted:
        assert sum(begin <= moment < begin + 60 for moment in granted) <= amount
    assert len(granted) >= amount * int(600 / 61)
