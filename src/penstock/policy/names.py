"""Which models a name stands for, for this caller, in which order.

In: the names, the models that there are and that the caller may use, who asks; out: a verdict with its why.  Pure.
A split is weighted rendezvous hashing (Schindelhauer and Schomaker 2005): a caller stays on its side, and where weights
change, nobody moves to a side that did not grow beside the one that is left.
Argued in docs/decisions/015-names.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b

import msgspec

from penstock.config.names import Name, Shadow, Sticky

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,199}")
_MOST_NAMES = 1000
_MOST_TARGETS = 16
_MOST_STEPS = 4
"""A name may lead to a name, but not for ever: every request follows the way."""
_SCALE = 1 << 64

Names = Mapping[str, Name]


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, for splits.  ``session`` and ``user`` as the request names them, empty where it does not.

    ``conversation()`` gives the beginning that all requests of one conversation share.
    """

    tenant: str
    key_id: str = ""
    session: str = ""
    user: str = ""
    conversation: Callable[[], bytes] = bytes


class NameVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """``chain``: the models to ask in order, none of which the caller may not use; empty: there is none for it."""

    asked: str
    chain: tuple[str, ...]
    why: str
    shadow: Shadow | None = None


def is_name(text: str) -> bool:
    """Whether something may be called so."""
    return _NAME.fullmatch(text) is not None


def check(names: Names, models: Collection[str]) -> None:
    """Whether the names hold together.  Raises ``ValueError`` that says which does not, and why."""
    if len(names) > _MOST_NAMES:
        raise ValueError(f"there are {len(names)} names; at most {_MOST_NAMES} are possible")
    for own, name in names.items():
        if not is_name(own):
            raise ValueError(f"{own[:200]!r} is no name: letters, digits and . _ : / @ -, at most 200")
        if own in models:
            raise ValueError(f"the name {own!r} is a model's already")
        _check_weights(own, name.weights)
        for kind, target in (*(("to", to) for to in name.weights), *(("fallback", to) for to in name.fallbacks)):
            if target not in names and target not in models:
                raise ValueError(f"{own!r} has the {kind} {target[:200]!r}, which is neither a model nor a name")
        if len(set(name.fallbacks)) != len(name.fallbacks) or len(name.fallbacks) > _MOST_TARGETS:
            raise ValueError(f"{own!r} has the same fallback twice, or more than {_MOST_TARGETS}")
        if name.shadow is not None and name.shadow.model not in models:
            raise ValueError(f"{own!r} has the shadow {name.shadow.model[:200]!r}, which is no model")
    _check_cycles(names)


def resolve(asked: str, names: Names, may_use: Callable[[str], bool], caller: Caller) -> NameVerdict:
    """The models behind ``asked``.  ``may_use(model)``: it is served, and this caller has a right to it."""
    whys: list[str] = []
    chain = _chain(asked, names, may_use, caller, whys)
    name = names.get(asked)
    shadow = name.shadow if name is not None and chain else None
    then = f"; then {', '.join(chain[1:])}" if len(chain) > 1 else ""
    return NameVerdict(asked=asked, chain=chain, why=f"{'; '.join(whys)}{then}", shadow=shadow)


def reachable(asked: str, names: Names, may_use: Callable[[str], bool]) -> bool:
    """Whether anything behind a name is for this caller."""
    name = names.get(asked)
    if name is None:
        return may_use(asked)
    targets = [target for target, weight in name.weights.items() if weight > 0]
    return any(reachable(target, names, may_use) for target in (*targets, *name.fallbacks))


def side(key: bytes, weights: Mapping[str, float]) -> str:
    """Where ``key`` falls.  One weight at least is above 0."""
    best, least = "", math.inf
    for target, weight in weights.items():
        if weight <= 0:
            continue
        digest = blake2b(key + b"\0" + target.encode(), digest_size=8).digest()
        number = (int.from_bytes(digest, "big") + 0.5) / _SCALE
        cost = -math.log(number) / weight
        if cost < least or (cost == least and target < best):
            best, least = target, cost
    return best


def _chain(
    asked: str, names: Names, may_use: Callable[[str], bool], caller: Caller, whys: list[str]
) -> tuple[str, ...]:
    name = names.get(asked)
    if name is None:
        return (asked,) if may_use(asked) else ()
    open_to = {to: weight for to, weight in name.weights.items() if weight > 0 and reachable(to, names, may_use)}
    chain: list[str] = []
    if open_to:
        chosen, why = _choose(open_to, caller, name.sticky)
        whys.append(f"{asked} is {chosen}{why}")
        chain += _chain(chosen, names, may_use, caller, whys)
    for fallback in name.fallbacks:
        chain += _chain(fallback, names, may_use, caller, [])
    return tuple(dict.fromkeys(chain))


def _choose(weights: dict[str, float], caller: Caller, sticky: Sticky) -> tuple[str, str]:
    if len(weights) == 1:
        return next(iter(weights)), ""
    kind, value = _sticks_to(caller, sticky)
    key = b"\0".join((caller.tenant.encode(), kind.encode(), value))
    chosen = side(key, weights)
    total = sum(weights.values())
    return chosen, f", which has {weights[chosen]:g} of {total:g}, by its {kind}, which falls there at these weights"


def _sticks_to(caller: Caller, sticky: Sticky) -> tuple[str, bytes]:
    if caller.session:
        return "session", caller.session.encode("utf-8", "surrogatepass")
    if sticky == "caller":
        if caller.user:
            return "user", caller.user.encode("utf-8", "surrogatepass")
        if caller.key_id:
            return "key", caller.key_id.encode()
    return "conversation", caller.conversation()


def _check_weights(own: str, weights: Mapping[str, float]) -> None:
    if not weights or len(weights) > _MOST_TARGETS:
        raise ValueError(f"{own!r} leads to {len(weights)} models; 1 to {_MOST_TARGETS} are possible")
    for target, weight in weights.items():
        if not (math.isfinite(weight) and weight >= 0):
            raise ValueError(f"{own!r} gives {target[:200]!r} the weight {weight:g}; it is a finite number, 0 or more")
    total = sum(weights.values())
    if not (math.isfinite(total) and total > 0):
        raise ValueError(f"the weights of {own!r} sum up to {total:g}; at least one has to be above 0")


def _check_cycles(names: Names) -> None:
    """Follow every name; one that leads back to itself is told with the whole way."""
    steps: dict[str, int] = {}

    def follow(name: str, way: tuple[str, ...]) -> int:
        if name in way:
            raise ValueError(f"names lead back to themselves: {' -> '.join((*way[way.index(name) :], name))}")
        if name not in names:
            return 0
        if len(way) > _MOST_TARGETS * _MOST_STEPS:  # whatever it leads to: following it to its end has to end, too
            raise ValueError(f"{way[0]!r} leads through more than {_MOST_STEPS} names")
        if name not in steps:
            steps[name] = 1 + max(follow(to, (*way, name)) for to in (*names[name].weights, *names[name].fallbacks))
        if len(way) + steps[name] > _MOST_STEPS:
            raise ValueError(f"{[*way, name][0]!r} leads through more than {_MOST_STEPS} names")
        return steps[name]

    for name in names:
        follow(name, ())
