"""Whether a request that its model could not take is asked of another one, and of which.

In: how it failed, what is left of its chain; out: a verdict with its why.  Pure.
Only before an engine has taken it up: what was promised goes on by ``policy/retry.py`` or fails.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

FALLS_BACK = frozenset({"not_ready", "overloaded", "context_length_exceeded", "engine_lost", "draining"})
"""Codes that say: not this model, or not now."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A model that has not been asked.  ``ready``: replicas that take requests; ``context_tokens`` where known."""

    model: str
    ready: int
    context_tokens: int | None = None


class FallbackVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """``model`` is ``None`` where the failure stands."""

    model: str | None
    why: str


def decide(code: str, failed: str, context_tokens: int | None, rest: Sequence[Candidate]) -> FallbackVerdict:
    """The next model.  ``code`` is how ``failed``, which has so much context, answered."""
    if code not in FALLS_BACK:
        return FallbackVerdict(model=None, why=f"{code} would be the same at another model")
    passed: list[str] = []
    for candidate in rest:
        if not candidate.ready:
            passed.append(f"{candidate.model} has no ready replica")
        elif code == "context_length_exceeded" and not _longer(candidate.context_tokens, context_tokens):
            passed.append(f"{candidate.model} has {candidate.context_tokens} tokens of context")
        else:
            why = "; ".join([f"{failed} answered {code}", *passed])
            return FallbackVerdict(model=candidate.model, why=why)
    return FallbackVerdict(model=None, why="; ".join([f"{failed} answered {code}", *passed, "nothing else is left"]))


def _longer(one: int | None, other: int | None) -> bool:
    return one is None or other is None or one > other
