"""Whether there is room for one more try: retries as a share of requests, so that failures do not multiply.

In: what was begun and tried again lately; out: a verdict with its why.  Pure.
The idea is Finagle's RetryBudget and Envoy's retry_budget, whose 20 % and ten a second these are: where every replica
fails, the engines see at most 1.2 times the requests, or that plus so few that they do not matter.
"""

from __future__ import annotations

import msgspec


class BudgetRules(msgspec.Struct, frozen=True, kw_only=True):
    """``share`` of the requests of the last ``window_s`` may be tried again, and ``least_per_s`` in any case."""

    share: float = 0.2
    least_per_s: float = 10.0
    window_s: float = 10.0


class BudgetVerdict(msgspec.Struct, frozen=True, kw_only=True):
    granted: bool
    why: str


def afford(requests: int, retries: int, rules: BudgetRules) -> BudgetVerdict:
    """One more try, after so many ``requests`` and ``retries`` in the window."""
    most = max(rules.share * requests, rules.least_per_s * rules.window_s)
    why = f"{retries} of {most:g} retries in {rules.window_s:g} s, in which {requests} requests began"
    return BudgetVerdict(granted=retries + 1 <= most, why=why)
