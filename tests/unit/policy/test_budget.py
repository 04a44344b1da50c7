"""Retries stay a share of requests, whatever fails."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from penstock.gateway.budget import RetryBudget
from penstock.policy.budget import BudgetRules, afford


def test_a_fifth_may_be_tried_again() -> None:
    """Up to 20 % of the requests, and never less than ten a second; the why has the numbers."""
    rules = BudgetRules()
    assert afford(1000, 199, rules).granted and not afford(1000, 200, rules).granted
    assert afford(0, 99, rules).granted and not afford(0, 100, rules).granted
    assert afford(1000, 200, rules).why == "200 of 200 retries in 10 s, in which 1000 requests began"


class HandClock:
    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time


@given(st.lists(st.tuples(st.sampled_from(["begin", "retry"]), st.floats(0, 3)), max_size=300))
def test_what_is_granted_in_any_window_is_within_its_share(turns: list[tuple[str, float]]) -> None:
    """Whatever comes when: of the last window's retries, no more were granted than its requests and its floor allow."""
    rules, clock = BudgetRules(least_per_s=0.2), HandClock()
    budget = RetryBudget(rules, clock)
    begun: list[float] = []
    granted: list[float] = []
    for what, pause in turns:
        clock.time += pause
        if what == "begin":
            budget.note_request()
            begun.append(clock.time)
        elif budget.ask().granted:
            granted.append(clock.time)
            # The counters go by tenths of the window: it is a tenth shorter at times, never longer.
            lately = sum(clock.time - at < rules.window_s for at in begun)
            short = rules.window_s * 0.9
            assert sum(clock.time - at < short for at in granted) <= max(0.2 * lately, 2)
