"""Calls that wait for more of a slice than their gateway holds, and in which words they are refused.

In: what a call wants, the shares of its rules as the store has just answered; out: a verdict, or ``None``: it waits on.
Grants nothing: that is ``gateway.shared``'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from penstock.policy.account import Moment
from penstock.policy.limit import Amounts, Grant, Rule, Verdict, longer
from penstock.policy.slices import Share

WAIT_S = 1.0
"""The bound of waiting for an empty slice; a store that has been away for longer is not waited for."""


@dataclass(slots=True, eq=False)
class Waiter:
    """One call.  ``turn`` is settled with a verdict and, where it grants, the grant."""

    rules: tuple[Rule, ...]
    want: Amounts
    turn: asyncio.Future[tuple[Verdict, Grant | None]]

    def needs(self) -> Iterable[tuple[Rule, int]]:
        return ((rule, self.want[rule.field]) for rule in self.rules if self.want[rule.field])

    def refusal(self, shares: Sequence[Share], settled: Collection[str], now: Moment) -> Verdict | None:
        """Why it cannot be granted, as far as that is known.  ``settled``: the rules that were just answered for."""
        lacking = [share for share in shares if share.room(now) < self.want[share.rule.field]]
        for share in lacking:
            if share.unusable:
                return away(share.rule, self.want)
        known = [s for s in lacking if s.rule.key in settled and s.is_refused(self.want[s.rule.field], now)]
        return refusal(self.rules, known, self.want, now) if known else None


def refusal(rules: tuple[Rule, ...], lacking: Sequence[Share], want: Amounts, now: Moment) -> Verdict:
    """Of all that the store has not so much of, the one that lasts longest."""
    refused: Verdict | None = None
    for share in lacking:
        verdict = Verdict(
            num_rules=len(rules),
            refused=share.rule,
            wanted=want[share.rule.field],
            left=share.left + share.free,
            retry_after_s=max(0.0, share.fits_at - now.steady),
        )
        refused = verdict if refused is None else longer(refused, verdict)
    assert refused is not None
    return refused


def away(rule: Rule, want: Amounts) -> Verdict:
    """Nobody can say now what is left of it."""
    return Verdict(num_rules=1, refused=rule, wanted=want[rule.field], retry_after_s=WAIT_S, away=True)
