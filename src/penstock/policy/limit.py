"""Whether a request fits into every limit on its way: requests, tokens, dollars, and how many at a time.

In: rules, what each has granted so far, what is wanted, now; out: a verdict with its why, and the accounts after it.
Pure.  Either every rule is charged or none, so no order of calls grants more than a limit at any instant.
Argued in docs/decisions/010-limits.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import sub
from typing import NamedTuple

import msgspec

from penstock.config.tenants import Scope, Unit, Window
from penstock.policy.account import Account, Moment, charged, fits_after, mark_of, returned, rolled, whole_after

NUSD = 1_000_000_000
"""Dollars are counted in whole nano-dollars, so that what is returned is exactly what was taken."""


class Amounts(NamedTuple):
    """How much of each unit; ``usd`` in nano-dollars.  The fields are named as the units of a limit."""

    requests: int = 0
    tokens: int = 0
    usd: int = 0
    concurrency: int = 0


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """One limit of one scope in whole units.  ``key`` names its account and outlives a change of the amount."""

    key: str
    scope: str
    unit: Unit
    window: Window | None
    amount: int
    model: str | None = None
    field: int = 0
    """Where :class:`Amounts` has the unit."""


class Grant(NamedTuple):
    """What was granted at once.  ``marks`` are aligned with the rules: where each account has it."""

    amounts: Amounts
    marks: tuple[int, ...]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """``refused`` is the rule that stays in the way longest, with what it has ``left`` of what is ``wanted``.

    ``retry_after_s``: by then it fits if nobody else asks; ``None``: it never will.
    ``short``: what this gateway may grant by itself does not suffice, and the others have to be asked; ``away``: they
    could not be.
    """

    num_rules: int
    refused: Rule | None = None
    wanted: int = 0
    left: int = 0
    retry_after_s: float | None = None
    short: bool = False
    away: bool = False

    @property
    def granted(self) -> bool:
        return self.refused is None

    @property
    def why(self) -> str:
        if self.refused is None:
            return f"fits into all of {self.num_rules} limits"
        rule = self.refused
        if self.away:
            return f"what is left of {describe(rule)} of {rule.scope} is shared, and cannot be asked for now"
        return (
            f"{rule.scope} has {amount_text(rule.unit, self.left)} left of {describe(rule)}, "
            f"and {amount_text(rule.unit, self.wanted)} {'is' if self.wanted == 1 else 'are'} needed"
        )


class Standing(NamedTuple):
    """How a rule stands: ``reset_s`` is when it is whole again if nobody asks."""

    rule: Rule
    left: int
    reset_s: float


def rules_of(scopes: Iterable[Scope], model: str) -> tuple[Rule, ...]:
    """Every rule that a request for ``model`` has to fit into."""
    return tuple(
        Rule(
            key=f"{scope.name}|{limit.unit}|{limit.window or ''}|{limit.model or ''}",
            scope=scope.name,
            unit=limit.unit,
            window=limit.window,
            amount=round(limit.amount * NUSD) if limit.unit == "usd" else int(limit.amount),
            model=limit.model,
            field=Amounts._fields.index(limit.unit),
        )
        for scope in scopes
        for limit in scope.limits
        if limit.model is None or limit.model == model
    )


def reserve(
    rules: Sequence[Rule],
    accounts: Sequence[Account],
    want: Amounts,
    now: Moment,
    slices: Sequence[int] | None = None,
) -> tuple[Verdict, list[Account], Grant | None]:
    """Charge ``want`` to every rule, or to none.  ``accounts`` are aligned with ``rules``, before and after.

    ``slices``: where the limits are shared, how much of each may be granted here.
    """
    refused: Verdict | None = None
    after = []
    for place, (rule, before) in enumerate(zip(rules, accounts, strict=True)):
        account = rolled(rule.window, before, now)
        after.append(account)
        wanted = want[rule.field]
        left = rule.amount - account.granted if slices is None else slices[place]
        if wanted and wanted > left:
            short = slices is not None and wanted <= rule.amount
            verdict = Verdict(
                num_rules=len(rules),
                refused=rule,
                wanted=wanted,
                left=max(0, left),
                retry_after_s=0.0 if short else _fits_after(rule, account, wanted, now),
                short=short,
            )
            refused = verdict if refused is None else longer(refused, verdict)
    if refused is not None:
        return refused, after, None
    marks = []
    for place, rule in enumerate(rules):
        mark = mark_of(rule.window, after[place], now)
        marks.append(mark)
        if wanted := want[rule.field]:
            after[place] = charged(after[place], mark, wanted)
    return Verdict(num_rules=len(rules)), after, Grant(want, tuple(marks))


def settle(
    rules: Sequence[Rule], accounts: Sequence[Account], grants: Sequence[Grant], keep: Amounts
) -> tuple[list[Account], list[Grant]]:
    """Give back what ``grants`` hold beyond ``keep``, from the newest on; what is left of accounts and grants.

    A window that has passed takes nothing back: what it granted counts no more.
    """
    after, left = list(accounts), list(grants)
    excess = [max(0, held - kept) for held, kept in zip(total(left), keep, strict=True)]
    for place in range(len(left) - 1, -1, -1):
        if not any(excess):
            break
        amounts, marks = left[place]
        back = tuple(map(min, amounts, excess))
        excess = list(map(sub, excess, back))
        left[place] = Grant(Amounts(*map(sub, amounts, back)), marks)
        for index, rule in enumerate(rules):
            if given := back[rule.field]:
                after[index] = returned(after[index], marks[index], given)
    return after, [grant for grant in left if any(grant.amounts)]


def total(grants: Sequence[Grant]) -> Amounts:
    """What the grants hold together."""
    if len(grants) == 1:
        return grants[0].amounts
    return Amounts(*map(sum, zip(*(grant.amounts for grant in grants), strict=True)))


def tightest(rules: Sequence[Rule], accounts: Sequence[Account], unit: Unit, now: Moment) -> Standing | None:
    """The rule of ``unit`` that has least left; ``None``: no rule limits it."""
    best: tuple[int, Rule, Account] | None = None
    for rule, before in zip(rules, accounts, strict=True):
        if rule.unit == unit:
            account = rolled(rule.window, before, now)
            left = max(0, rule.amount - account.granted)
            if best is None or left < best[0]:
                best = left, rule, account
    if best is None:
        return None
    left, rule, account = best
    return Standing(rule, left, whole_after(rule.window, account, now))


def describe(rule: Rule) -> str:
    """A rule in words, such as ``1000 tokens of 'm' per minute``."""
    of_model = f" of {rule.model!r}" if rule.model is not None else ""
    how_often = " at a time" if rule.window is None else f" per {rule.window}"
    return amount_text(rule.unit, rule.amount) + of_model + how_often


def amount_text(unit: Unit, amount: int) -> str:
    """An amount with its unit."""
    if unit == "usd":
        return f"${amount / NUSD:.9f}".rstrip("0").rstrip(".")
    noun = "requests" if unit == "concurrency" else unit
    return f"1 {noun[:-1]}" if amount == 1 else f"{amount} {noun}"


def _fits_after(rule: Rule, account: Account, wanted: int, now: Moment) -> float | None:
    return (
        None if wanted > rule.amount else fits_after(rule.window, account, account.granted + wanted - rule.amount, now)
    )


def longer(one: Verdict, other: Verdict) -> Verdict:
    """Of two refusals the one that lasts longer; one for ever outlasts all."""
    if one.retry_after_s is None or other.retry_after_s is None:
        return one if one.retry_after_s is None else other
    return one if one.retry_after_s >= other.retry_after_s else other
