"""What one model's retry budget is counted from: requests and retries of the last seconds.

In: each of them as it happens; out: verdicts of ``policy.budget``.  Ten counters and their sums, whatever the load.
"""

from __future__ import annotations

from penstock.policy.budget import BudgetRules, BudgetVerdict, afford
from penstock.ports import Clock

_PARTS = 10


class RetryBudget:
    """The window moves on by a tenth at a time."""

    def __init__(self, rules: BudgetRules, clock: Clock) -> None:
        self._rules = rules
        self._clock = clock
        self._part_s = rules.window_s / _PARTS
        self._part = self._now()
        self._requests = [0] * _PARTS
        self._retries = [0] * _PARTS

    def note_request(self) -> None:
        """A sequence was begun."""
        self._turn()
        self._requests[self._part % _PARTS] += 1

    def ask(self) -> BudgetVerdict:
        """Whether one may be tried again; if so, it is counted."""
        self._turn()
        verdict = afford(sum(self._requests), sum(self._retries), self._rules)
        if verdict.granted:
            self._retries[self._part % _PARTS] += 1
        return verdict

    def _turn(self) -> None:
        now = self._now()
        for part in range(max(self._part, now - _PARTS) + 1, now + 1):
            self._requests[part % _PARTS] = self._retries[part % _PARTS] = 0
        self._part = now

    def _now(self) -> int:
        return int(self._clock.now() / self._part_s)
