"""Whether a sequence that has been silent is stalled: its engine answers and does nothing more for it.

In: what the engine says of its progress, the rules, what it said before, now; out: a verdict with its why.  Pure.
Silence alone is no stall: a long prompt, a long queue and a slow machine are silent, too, but something grows there.
"""

from __future__ import annotations

import msgspec

from penstock.wire.load import Progress


class StallRules(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds.  ``ask_after_s``: of silence, before the engine is asked at all.

    Without any progress a sequence is given ``least_s``, or longer where the engine itself says that a step may take
    longer; ``mute_s`` where the engine does not answer; ``prepare_s`` to be rendered, tokenised and taken up.
    """

    ask_after_s: float = 2.0
    least_s: float = 5.0
    mute_s: float = 10.0
    prepare_s: float = 60.0


class Silence(msgspec.Struct, frozen=True, kw_only=True):
    """One silent request.  ``accepted``: its engine had taken it up.  ``said``: ``None``: no answer came."""

    id: str
    accepted: bool
    said: Progress | None


class StallMemory(msgspec.Struct, frozen=True):
    """``mark`` has been the same since ``since``."""

    mark: tuple[str, int]
    since: float


class StallVerdict(msgspec.Struct, frozen=True):
    stalled: bool
    why: str


def decide(
    view: Silence, rules: StallRules, memory: StallMemory | None, now: float
) -> tuple[StallVerdict, StallMemory]:
    """Stalled is what shows the same mark for longer than it may; ``memory`` ``None``: the first look."""
    mark, limit_s = _mark(view, rules)
    if memory is None or memory.mark != mark:
        return StallVerdict(False, f"{mark[0]}, first seen now"), StallMemory(mark, now)
    unchanged_s = now - memory.since
    why = f"{mark[0]}, unchanged for {unchanged_s:.1f} s of at most {limit_s:.1f} s"
    return StallVerdict(unchanged_s > limit_s, why), memory


def _mark(view: Silence, rules: StallRules) -> tuple[tuple[str, int], float]:
    """What has to grow, and how long it may take to."""
    said = view.said
    if said is None:
        return ("the engine does not answer", 0), rules.mute_s
    if view.id not in said.computed:
        if view.accepted:
            return ("the engine does not know it any more", 0), rules.least_s
        return ("not taken up yet", 0), rules.prepare_s
    limit_s = max(rules.least_s, said.step_limit_s)
    computed = said.computed[view.id]
    if computed is None:
        return ("waiting or computing its prompt", said.steps), limit_s
    return ("decoding", computed), limit_s
