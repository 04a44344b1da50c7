"""The accounts of every limit, and what each call holds of them.

In: principals, token counts as they become known; out: verdicts of ``policy.limit``.  No I/O and no await: what is
read of an account is written before anybody else reads it.
A hold's grants are never below what its call has used, so no account is ever below what was used of its limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple

from penstock.config.tenants import Principal, Window
from penstock.cost.money import Rate, Tariff, cost_nusd
from penstock.policy.account import Account, Moment, carried
from penstock.policy.limit import Amounts, Grant, Rule, Standing, Verdict, reserve, rules_of, settle
from penstock.policy.limit import tightest as tightest_rule
from penstock.ports import Clock

_SLICE_TOKENS = 256
"""Output is granted by so much at a time: a stream holds no more than this beyond what it has delivered."""
_MOST_CACHED_RULES = 10_000
_NOTHING_GRANTED = Account()


class Used(NamedTuple):
    """What ``writer``, one life of a gateway, has used of a model on the account of ``scope``."""

    writer: str
    scope: str
    model: str
    amounts: Amounts


def by_rule(window: Window, used: Iterable[Used]) -> dict[str, dict[str, int]]:
    """How much of each rule's account every writer has used, by the rule's key."""
    found: dict[str, dict[str, int]] = {}
    for writer, scope, model, amounts in used:
        for unit, amount in amounts._asdict().items():
            for key in (f"{scope}|{unit}|{window}|", f"{scope}|{unit}|{window}|{model}"):
                if amount:
                    by_writer = found.setdefault(key, {})
                    by_writer[writer] = by_writer.get(writer, 0) + amount
    return found


class Limits:
    """One gateway's accounts.  ``wall_clock`` is for days and months alone."""

    def __init__(self, clock: Clock, wall_clock: Callable[[], float], tariff: Tariff) -> None:
        self._tariff = tariff
        self._clock = clock
        self._wall_clock = wall_clock
        self._accounts: dict[str, Account] = {}
        self._rules: dict[tuple[int, str], tuple[Principal, tuple[Rule, ...]]] = {}
        self.informed = asyncio.Event()

    async def keep(self, recall: Callable[[Limits], Coroutine[Any, Any, None]]) -> None:
        """What has to go on beside the calls.  ``recall`` asks the ledger what was used before, until it answers.

        ``informed`` is set once all is known that can be.
        """
        await recall(self)
        self.informed.set()

    def wall(self) -> float:
        """Seconds since the epoch, by the clock that decides about days and months."""
        return self._wall_clock()

    def recall(self, window: Window, used: Iterable[Used]) -> None:
        """What others have used, or this gateway before it was started again, in the ``window`` that is now.

        Counted as if it had been granted here; once per window.
        """
        now = self._moment()
        for key, by_writer in by_rule(window, used).items():
            amount = sum(by_writer.values())
            self._accounts[key] = carried(window, self._accounts.get(key, Account()), amount, now)

    def rate(self, model: str) -> Rate | None:
        """What the model's tokens cost now; ``None``: nobody has said."""
        return self._tariff.rate(model, self.wall())

    def rules(self, principal: Principal, model: str) -> tuple[Rule, ...]:
        """Every rule that a request of ``principal`` for ``model`` has to fit into."""
        if not principal.scopes:
            return ()
        # By identity: principals are kept as long as their keys are, and comparing one costs more than the lookup.
        known = self._rules.get((id(principal), model))
        if known is None or known[0] is not principal:
            if len(self._rules) >= _MOST_CACHED_RULES:
                self._rules.clear()
            known = self._rules[id(principal), model] = (principal, rules_of(principal.scopes, model))
        return known[1]

    def take(self, rules: tuple[Rule, ...], want: Amounts) -> tuple[Verdict, Grant | None]:
        """Charge all of ``rules``, or none."""
        verdict, accounts, grant = reserve(rules, self._read(rules), want, self._moment())
        self._write(rules, accounts)
        return verdict, grant

    def settle(self, rules: tuple[Rule, ...], grants: list[Grant], keep: Amounts) -> list[Grant]:
        """Give back what the grants hold beyond ``keep``."""
        accounts, left = settle(rules, self._read(rules), grants, keep)
        self._write(rules, accounts)
        return left

    def tightest(self, rules: tuple[Rule, ...]) -> list[Standing]:
        """How it stands with requests and with tokens, where they are limited."""
        accounts, now = self._read(rules), self._moment()
        found = (tightest_rule(rules, accounts, unit, now) for unit in ("requests", "tokens"))
        return [standing for standing in found if standing is not None]

    def account(self, rule: Rule) -> Account:
        """What the rule has granted, as it was when somebody last asked."""
        return self._accounts.get(rule.key, _NOTHING_GRANTED)

    async def fetch(self, rules: tuple[Rule, ...], want: Amounts) -> tuple[Verdict, Grant | None]:
        """As :meth:`take`, where that was short; waits, within a bound, for what other gateways leave."""
        raise AssertionError("one gateway by itself is never short")

    def _moment(self) -> Moment:
        return Moment(self._clock.now(), self.wall())

    def _read(self, rules: tuple[Rule, ...]) -> list[Account]:
        accounts = self._accounts
        return [accounts.get(rule.key, _NOTHING_GRANTED) for rule in rules]

    def _write(self, rules: tuple[Rule, ...], accounts: list[Account]) -> None:
        for rule, account in zip(rules, accounts, strict=True):
            self._accounts[rule.key] = account


class Hold:
    """What one call holds.  ``used`` output tokens are those of all its choices; ``running`` of them have not ended.

    ``most_output``: no more will come, an end-of-sequence token per choice included; ``None``: nobody knows.
    """

    __slots__ = (
        "_grants",
        "_input",
        "_lacking",
        "_limits",
        "_most_output",
        "_output",
        "_rate",
        "rules",
        "running",
        "used",
    )

    def __init__(
        self, limits: Limits, rules: tuple[Rule, ...], rate: Rate, most_output: int | None, choices: int
    ) -> None:
        self.rules = rules
        self.used = 0
        self.running = choices
        self._limits = limits
        self._rate = rate
        self._most_output = most_output
        self._grants: list[Grant] = []
        self._lacking = (Amounts(), 0, 0)
        self._input = 0
        self._output = 0

    def begin(self, input_tokens: int) -> Verdict:
        """Reserve the request itself, its input by an upper bound, and the first slice of its output."""
        first = Amounts(requests=1, concurrency=1)
        verdict = self._grow(first, input_tokens, self._slice(self.running))
        if not verdict.granted:
            verdict = self._grow(first, input_tokens, self._bounded(self.running))
        return verdict

    def know_input(self, tokens: int, *, whole: bool = True) -> Verdict | None:
        """The input is ``tokens``; not ``whole``: there is more, of which nothing is known yet, or the call is over
        in a moment, which gives everything back at once.

        Gives back what was too much, or reserves what is missing; the verdict if that fails.
        """
        if tokens > self._input:
            verdict = self._grow(Amounts(), tokens - self._input, 0)
            if not (verdict.granted or verdict.short):
                # The slice is a convenience: what it holds may be just what the input needs.
                self._output = self._bounded(self.used + self.running)
                self._settle()
                verdict = self._grow(Amounts(), tokens - self._input, 0)
            return None if verdict.granted else verdict
        if whole:
            self._input = tokens
            self._settle()
        return None

    def cover(self, output: int, running: int) -> Verdict | None:
        """Top up until ``output`` tokens, and one more per running choice, are granted; the verdict if that fails.

        The one more is the token that ends a choice: an engine counts it and does not stream it.
        """
        need = self._bounded(output + running)
        if need <= self._output:
            return None
        verdict = self._grow(Amounts(), 0, self._slice(need) - self._output)
        if not verdict.granted:
            verdict = self._grow(Amounts(), 0, need - self._output)
        return None if verdict.granted else verdict

    async def fetch(self) -> Verdict:
        """Reserve, once others have left it, what a verdict that was ``short`` was about."""
        base, more_input, more_output = self._lacking
        want = self._want(base, more_input, more_output)
        verdict, grant = await self._limits.fetch(self.rules, want)
        self._book(grant, more_input, more_output)
        return verdict

    @property
    def left(self) -> int:
        """Output tokens that are granted and not used."""
        return self._output - self.used

    def end(self, *, requests: int, prompt: int, cached: int, output: int) -> None:
        """The call is over and has used this; the rest goes back."""
        cost = cost_nusd(self._rate, prompt, cached, output)
        keep = Amounts(requests=requests, tokens=prompt + output, usd=cost)
        self._grants = self._limits.settle(self.rules, self._grants, keep)

    def _grow(self, base: Amounts, more_input: int, more_output: int) -> Verdict:
        verdict, grant = self._limits.take(self.rules, self._want(base, more_input, more_output))
        self._book(grant, more_input, more_output)
        if verdict.short:
            self._lacking = base, more_input, more_output
        return verdict

    def _want(self, base: Amounts, more_input: int, more_output: int) -> Amounts:
        before = cost_nusd(self._rate, self._input, 0, self._output)
        after = cost_nusd(self._rate, self._input + more_input, 0, self._output + more_output)
        return base._replace(tokens=more_input + more_output, usd=after - before)

    def _book(self, grant: Grant | None, more_input: int, more_output: int) -> None:
        if grant is not None:
            self._grants.append(grant)
            self._input += more_input
            self._output += more_output

    def _settle(self) -> None:
        cost = cost_nusd(self._rate, self._input, 0, self._output)
        keep = Amounts(requests=1, tokens=self._input + self._output, usd=cost, concurrency=1)
        self._grants = self._limits.settle(self.rules, self._grants, keep)

    def _slice(self, need: int) -> int:
        return self._bounded(need + _SLICE_TOKENS)

    def _bounded(self, output: int) -> int:
        return output if self._most_output is None else min(output, self._most_output)
