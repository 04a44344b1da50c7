"""What a limit's verdict says, and how a rule stands."""

from __future__ import annotations

import math

import pytest

from penstock.config.tenants import Limit, Scope
from penstock.policy.account import Account, Moment
from penstock.policy.limit import NUSD, Amounts, describe, reserve, rules_of, settle, tightest

NOON = 1_798_718_400.0  # 31 December 2026, 12:00 UTC
NOW = Moment(1000.0, NOON)


def scope(name: str, *limits: Limit) -> Scope:
    return Scope(name=name, limits=limits)


def per_minute(amount: float, unit="tokens", model: str | None = None) -> Limit:
    return Limit(unit=unit, amount=amount, window="minute", model=model)


def test_all_scopes_are_charged_or_none() -> None:
    """A request that its key would allow and its tenant's parent does not leaves no trace anywhere."""
    rules = rules_of([scope("key:k", per_minute(100)), scope("tenant:top", per_minute(10))], "m")
    verdict, accounts, grant = reserve(rules, [Account(), Account()], Amounts(tokens=11), NOW)
    assert not verdict.granted and grant is None
    assert [account.granted for account in accounts] == [0, 0]
    assert verdict.refused is rules[1] and verdict.retry_after_s is None
    assert verdict.why == "tenant:top has 10 tokens left of 10 tokens per minute, and 11 tokens are needed"


@pytest.mark.parametrize("order", [1, -1])
def test_the_refusal_that_lasts_longest_is_named(order: int) -> None:
    """Of a minute and a month in the way, in whatever order, the month is what has to be waited for."""
    monthly = Limit(unit="usd", amount=2.5, window="month")
    rules = rules_of([scope("key:k", *[per_minute(10), monthly][::order])], "m")
    _, accounts, _ = reserve(rules, [Account(), Account()], Amounts(tokens=10, usd=5 * NUSD // 2), NOW)
    verdict, _, _ = reserve(rules, accounts, Amounts(tokens=1, usd=1), NOW)
    assert verdict.refused is not None and verdict.refused.unit == "usd"
    assert verdict.retry_after_s == 12 * 3600
    assert verdict.why == "key:k has $0 left of $2.5 per month, and $0.000000001 is needed"


def test_a_models_limit_counts_that_model_alone() -> None:
    """A rule of one model is none of another's, and its account is not that of the rule for all."""
    limits = [scope("key:k", per_minute(10, model="m"), per_minute(100))]
    assert [rule.key for rule in rules_of(limits, "other")] == ["key:k|tokens|minute|"]
    rules = rules_of(limits, "m")
    assert describe(rules[0]) == "10 tokens of 'm' per minute" and len({rule.key for rule in rules}) == 2


def test_settling_gives_back_the_newest_first() -> None:
    """What was topped up last is what was not used: the older grant stays, and so does the time it is freed."""
    [rule] = rules = rules_of([scope("key:k", per_minute(100))], "m")
    _, accounts, first = reserve(rules, [Account()], Amounts(tokens=50), NOW)
    _, accounts, second = reserve(rules, accounts, Amounts(tokens=50), Moment(1030.0, NOON))
    assert first is not None and second is not None
    accounts, left = settle(rules, accounts, [first, second], Amounts(tokens=40))
    assert accounts[0].granted == 40 and [grant.amounts.tokens for grant in left] == [40]
    verdict, _, _ = reserve(rules, accounts, Amounts(tokens=100), Moment(1031.0, NOON))
    assert verdict.retry_after_s == pytest.approx(1000 + 61 - 1031)


def test_what_a_past_window_granted_comes_back_to_nobody() -> None:
    """Settled after midnight, yesterday's unused tokens do not add to today's."""
    rules = rules_of([scope("key:k", Limit(unit="tokens", amount=10, window="day"))], "m")
    _, accounts, grant = reserve(rules, [Account()], Amounts(tokens=10), NOW)
    tomorrow = Moment(2000.0, NOON + 86_400)
    _, accounts, _ = reserve(rules, accounts, Amounts(tokens=6), tomorrow)
    assert grant is not None
    accounts, _ = settle(rules, accounts, [grant], Amounts())
    assert accounts[0].granted == 6
    assert not reserve(rules, accounts, Amounts(tokens=5), tomorrow)[0].granted


def test_the_tightest_rule_stands_for_its_unit() -> None:
    """Of several limits on tokens the one with least left is shown, with the time until it is whole."""
    rules = rules_of([scope("key:k", per_minute(100), Limit(unit="tokens", amount=60, window="day"))], "m")
    _, accounts, _ = reserve(rules, [Account(), Account()], Amounts(tokens=50), NOW)
    standing = tightest(rules, accounts, "tokens", NOW)
    assert standing is not None and standing.rule is rules[1]
    assert (standing.left, standing.reset_s) == (10, 12 * 3600)
    assert tightest(rules, accounts, "requests", NOW) is None


def test_a_minute_is_whole_when_its_last_grant_is_gone() -> None:
    """The reset of a sliding minute is that of the youngest grant."""
    rules = rules_of([scope("key:k", per_minute(100))], "m")
    _, accounts, _ = reserve(rules, [Account()], Amounts(tokens=5), NOW)
    _, accounts, _ = reserve(rules, accounts, Amounts(tokens=5), Moment(1030.0, NOON))
    standing = tightest(rules, accounts, "tokens", Moment(1031.0, NOON))
    assert standing is not None and standing.reset_s == pytest.approx(60)


def test_dollars_add_up_exactly() -> None:
    """A million charges of a nano-dollar's fractions of a dollar are that sum and come back to nothing."""
    rules = rules_of([scope("key:k", Limit(unit="usd", amount=0.1, window="month"))], "m")
    accounts, grants = [Account()], []
    for _ in range(1_000):
        verdict, accounts, grant = reserve(rules, accounts, Amounts(usd=100_000), NOW)
        assert grant is not None, verdict.why
        grants.append(grant)
    assert not reserve(rules, accounts, Amounts(usd=1), NOW)[0].granted
    assert settle(rules, accounts, grants, Amounts())[0][0].granted == 0


@pytest.mark.parametrize(
    "bad",
    [
        {"unit": "tokens", "amount": 1},
        {"unit": "concurrency", "amount": 1, "window": "day"},
        {"unit": "tokens", "amount": -1, "window": "day"},
        {"unit": "tokens", "amount": math.nan, "window": "day"},
        {"unit": "usd", "amount": math.inf, "window": "day"},
    ],
)
def test_a_limit_that_means_nothing_is_refused(bad: dict) -> None:
    """A rate needs a window, a number at a time has none, and an amount is a finite number from 0 on."""
    with pytest.raises(ValueError, match=r"window|amount"):
        Limit(**bad)
