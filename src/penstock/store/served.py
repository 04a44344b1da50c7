"""What the models in rights and limits are held against: those that services serve, and the names in front of them.

In: rights that somebody gives, and what is served as far as it is known; out: remarks, or a ``Problem``.
A name is refused: what is counted and allowed are the models behind it, so that a limit of a name would bind nobody.
A model that nobody serves is only remarked on: services that share a store need not serve the same ones.
So is one without a price under a budget in dollars: every request for it would be refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from penstock.config.tenants import Principal, Rights
from penstock.wire.errors import Problem


class Served(NamedTuple):
    """Of the services that were asked.  Without models: none was reached, and nothing is known.

    ``unpriced``: of the models, those without a price today.
    """

    models: frozenset[str] = frozenset()
    names: frozenset[str] = frozenset()
    unpriced: frozenset[str] = frozenset()


_MOST_NAMED = 5
AskServed = Callable[[], Served]


def nothing_known() -> Served:
    """Where no service is asked."""
    return Served()


def remarks(rights: Rights, actor: Principal | None, served: Served, may_use: frozenset[str] | None) -> tuple[str, ...]:
    """For each model that is not served to the actor, and of a budget without prices.

    Raises ``Problem`` ``invalid_value`` for a name.
    ``may_use``: the models of whoever gets the rights, from above and before, too; ``None``: all.
    """
    limited = {limit.model for limit in rights.limits if limit.model is not None}
    of_models = sorted(limited | (rights.models or frozenset()))
    for model in of_models:
        if model in served.names and model not in served.models:
            message = f"{model[:200]!r} is a name; give the models behind it, which are what is counted and allowed."
            raise Problem("invalid_value", message, param="limits" if model in limited else "models")
    if not served.models:
        return ()
    # Nobody learns here which models there are for others.
    seen = served.models if actor is None or actor.models is None else served.models & actor.models
    unserved = (
        f"{_said(model, limited)}: no model {model[:200]!r} is served here." for model in of_models if model not in seen
    )
    return (*unserved, *_without_price(rights, seen & served.unpriced, may_use))


def _without_price(rights: Rights, unpriced: frozenset[str], may_use: frozenset[str] | None) -> list[str]:
    budgets = [limit for limit in rights.limits if limit.unit == "usd"]
    refused = {model for model in unpriced for budget in budgets if budget.model in (None, model)}
    models = sorted(refused if may_use is None else refused & may_use)
    if not models:
        return []
    more = f" and {len(models) - _MOST_NAMED} more" if len(models) > _MOST_NAMED else ""
    named = ", ".join(repr(model[:200]) for model in models[:_MOST_NAMED])
    return [f"A budget in dollars refuses what has no price here: {named}{more}; `penstock serve --prices` gives one."]


def _said(model: str, limited: set[str]) -> str:
    return "A limit that binds nobody now" if model in limited else "A right to nothing now"
