"""What a request costs."""

from __future__ import annotations

import datetime as dt

from hypothesis import given
from hypothesis import strategies as st

from penstock.config.prices import Price
from penstock.cost.money import Rate, Tariff, cost_nusd

counts = st.integers(0, 10**7)
rates = st.integers(0, 10**9)


def test_a_price_counts_from_its_day_on() -> None:
    """The price is the one of the day in UTC; before the first, and without any, there is none."""
    tariff = Tariff(
        [
            Price(model="m", since=dt.date(2026, 7, 1), input=1, output=2),
            Price(model="m", since=dt.date(2026, 1, 1), input=3, output=4, cached=1.5),
        ]
    )
    july = dt.datetime(2026, 7, 1, tzinfo=dt.UTC).timestamp()
    assert tariff.rate("m", july - 1) == Rate(3_000_000, 1_500_000, 4_000_000)
    assert tariff.rate("m", july) == Rate(1_000_000, 1_000_000, 2_000_000)
    assert tariff.rate("m", 0) is tariff.rate("other", july) is None


def test_a_million_tokens_cost_their_price() -> None:
    """Prices are per million tokens, and a nano-dollar is a thousand-millionth of a dollar."""
    rate = Tariff([Price(model="m", since=dt.date(2026, 1, 1), input=0.15, output=0.6, cached=0.075)]).rate("m", 2e9)
    assert rate is not None
    assert cost_nusd(rate, 1_000_000, 0, 1_000_000) == 750_000_000
    assert cost_nusd(rate, 1_000_000, 1_000_000, 0) == 75_000_000
    assert cost_nusd(rate, 1, 0, 0) == 150


@given(rates, rates, rates, counts, counts, counts, counts)
def test_more_tokens_never_cost_less(
    input: int, saved: int, output: int, prompt: int, cached: int, answer: int, more: int
) -> None:
    """So what was reserved for an upper bound always covers what was used."""
    rate = Rate(input, max(0, input - saved), output)
    cached = min(cached, prompt)
    cost = cost_nusd(rate, prompt, cached, answer)
    assert cost <= cost_nusd(rate, prompt, 0, answer) <= cost_nusd(rate, prompt + more, 0, answer)
    assert cost <= cost_nusd(rate, prompt, cached, answer + more)
