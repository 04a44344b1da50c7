"""Why a request was admitted, where it went and what was rejected: its recorded verdicts in words, with their numbers.

In: calls, as long as they are remembered; out: an ``Explanation``.  Words are made when somebody asks, never before.
"""

from __future__ import annotations

from collections import OrderedDict

from penstock.gateway.call import Call
from penstock.policy.budget import BudgetVerdict
from penstock.policy.fallback import FallbackVerdict
from penstock.policy.limit import amount_text, describe
from penstock.policy.names import NameVerdict
from penstock.policy.route import RouteVerdict
from penstock.policy.shadow import ShadowVerdict
from penstock.wire.engine import Waits
from penstock.wire.errors import Problem
from penstock.wire.gateway import ExplainedStep, Explanation

_PREFIXES = ("chatcmpl-", "cmpl-")
_LACKED = {
    "blocks": "KV blocks",
    "sequences": "a place among those that run",
    "budget": "tokens of a step",
    "target": "the inter-token target of those that run",
    "preempting": "others to give their blocks back",
    "whole": "a step into which the next text fits whole",
}
"""What whoever is first in an engine's line is held for."""


class Recent:
    """The last calls, oldest forgotten first."""

    def __init__(self, max_calls: int = 2048) -> None:
        self._max_calls = max_calls
        self._calls: OrderedDict[str, Call] = OrderedDict()

    def add(self, call: Call) -> None:
        self._calls[call.id] = call
        if len(self._calls) > self._max_calls:
            self._calls.popitem(last=False)

    def find(self, id: str) -> Call:
        """By the id of its answer or of its ``x-request-id``.  Raises ``Problem`` ``not_found``."""
        for prefix in _PREFIXES:
            id = id.removeprefix(prefix)
        call = self._calls.get(id)
        if call is None:
            call = next((one for one in reversed(self._calls.values()) if one.request_id == id), None)
        if call is None:
            message = f"Nothing is remembered of {id[:200]!r}; the last {self._max_calls} requests are."
            raise Problem("not_found", message)
        return call


def explain(call: Call) -> Explanation:
    """One call, from its head on; of a running one, what was decided so far."""
    steps = [ExplainedStep(at_s=0.0, stage="identify", why=_who(call))]
    if call.standings:
        held = "; ".join(
            f"{amount_text(standing.rule.unit, standing.left)} left of {describe(standing.rule)}"
            for standing in call.standings
        )
        steps.append(ExplainedStep(at_s=0.0, stage="limit", why=f"tightest limits: {held}"))
    for at, verdict in call.trail:
        since = at - call.started
        if isinstance(verdict, NameVerdict):
            steps.append(ExplainedStep(at_s=since, stage="name", why=verdict.why or f"{verdict.asked} leads nowhere"))
        elif isinstance(verdict, FallbackVerdict):
            why = f"{f'to {verdict.model}' if verdict.model else 'no fallback'}: {verdict.why}"
            steps.append(ExplainedStep(at_s=since, stage="fallback", why=why))
        elif isinstance(verdict, BudgetVerdict):
            why = f"{'within' if verdict.granted else 'over'} the budget: {verdict.why}"
            steps.append(ExplainedStep(at_s=since, stage="retry", why=why))
        elif isinstance(verdict, ShadowVerdict):
            why = f"{'a copy' if verdict.copied else 'no copy'} to {verdict.model}: {verdict.why}"
            steps.append(ExplainedStep(at_s=since, stage="shadow", why=why))
        elif isinstance(verdict, RouteVerdict):
            why, scores = f"to {verdict.replica}: {verdict.why}", dict(verdict.scores)
            steps.append(ExplainedStep(at_s=since, stage="route", why=why, scores=scores))
        else:
            why = f"{'go on' if verdict.resume else 'give up'}: {verdict.why}"
            steps.append(ExplainedStep(at_s=since, stage="retry", why=why))
    steps += [ExplainedStep(at_s=at - call.started, stage="batch", why=waited(waits)) for at, waits in call.waits]
    if call.ended_as is not None:
        end = call.ended_as
        why = f"{end.outcome} with status {end.status}" + (f": {end.code}" if end.code else "")
        if call.refusal:
            why += f", {call.refusal}"
        steps.append(ExplainedStep(at_s=end.duration_s, stage="meter", why=f"{why}; {_tokens(call)}"))
    return Explanation(id=call.id, request_id=call.request_id, route=call.route, model=call.model, steps=steps)


def waited(waits: Waits) -> str:
    """What a sequence waited for inside its engine."""
    held = {_LACKED.get(why, why): seconds for why, seconds in waits.held.items()}
    turns_s = waits.queued_s - sum(waits.held.values())
    if turns_s > 0.05 * waits.queued_s:
        held["the turns of others"] = turns_s
    causes = ", ".join(f"{seconds:.3g} s for {what}" for what, seconds in sorted(held.items(), key=lambda x: -x[1]))
    why = f"waited {waits.queued_s:.3g} s in the engine" + (f": {causes}" if causes else "")
    if waits.preemptions:
        why += "; gave its KV blocks back " + ("once" if waits.preemptions == 1 else f"{waits.preemptions} times")
    return why


def _who(call: Call) -> str:
    who = call.principal
    return f"key {who.key_id} of tenant {who.tenant}" if who.key_id else "nobody in particular: no key was shown"


def _tokens(call: Call) -> str:
    end = call.ended_as
    assert end is not None
    return f"{end.prompt_tokens} tokens in, {end.cached_tokens} of them cached, {end.output_tokens} out"
