"""How many steps that only decode are computed as one.

In: what such a step takes, how far its sequences may go on, the strictest target between tokens; out: a number.
Pure.  Between two steps lies what no kernel does: planning, handing over to a thread, telling the streams.  Where a
step takes hardly longer than that, several are one call; whoever comes meanwhile waits for its end.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.policy.step_time import StepModel, StepShape

MOST_ROUNDS = 8
_LONGEST_S = 0.004
"""Of one call: what a request that comes meanwhile waits at most, and by how much tokens come in bursts."""
_SHARE_OF_TARGET = 0.5
_LEAST_STEPS = 4
"""So many steps have to have been learned from before one is relied on to be short."""


def rounds_within(model: StepModel, decodes: StepShape, target_s: float | None) -> int:
    """How many such steps fit into the time of one call; at least one."""
    step_s = model.seconds(decodes)
    if model.num_steps < _LEAST_STEPS or step_s <= 0:
        return 1
    longest_s = _LONGEST_S if target_s is None else min(_LONGEST_S, _SHARE_OF_TARGET * target_s)
    return max(1, min(MOST_ROUNDS, int(longest_s / step_s)))


def rounds_of(fitting: int, rooms: Iterable[int]) -> int:
    """``fitting`` rounds, or as many as the sequence with the least room (tokens to go, places in blocks) takes."""
    return max(1, min(fitting, *rooms))
