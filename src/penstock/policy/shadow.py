"""Whether a request is also sent to another model, whose answer nobody gets.

In: the request's id, the rule, how busy everything is; out: a verdict with its why.  Pure.
Whoever asks comes first: a copy is made only where nobody waits, and there are never more than the rule's.
"""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from penstock.config.names import Shadow

_SCALE = 1 << 64


class ShadowView(msgspec.Struct, frozen=True, kw_only=True):
    """``choices``: of the request; ``in_flight``: choices that run as copies at that model; ``ready``: its replicas;
    ``waiting``: requests, here and at its engines.
    """

    choices: int
    in_flight: int
    ready: int
    waiting: int


class ShadowVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """``copied``: a copy is sent to ``model``."""

    model: str
    copied: bool
    why: str


def decide(id: str, rule: Shadow, view: ShadowView) -> ShadowVerdict:
    """One request's verdict."""
    if not shadowed(id, rule.share):
        why = f"not one of the {rule.share:g} that are copied"
    elif view.in_flight + view.choices > rule.max_in_flight:
        why = f"{view.in_flight} of {rule.max_in_flight} choices are in flight, and it has {view.choices}"
    elif not view.ready:
        why = "it has no ready replica"
    elif view.waiting:
        why = f"{view.waiting} requests wait"
    else:
        why = f"one of the {rule.share:g} that are copied, {view.in_flight} of {rule.max_in_flight} in flight"
        return ShadowVerdict(model=rule.model, copied=True, why=why)
    return ShadowVerdict(model=rule.model, copied=False, why=why)


def shadowed(id: str, share: float) -> bool:
    """Whether the request with this id is one of the share that is copied."""
    return int.from_bytes(blake2b(id.encode(), digest_size=8).digest(), "big") < share * _SCALE
