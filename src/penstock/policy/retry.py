"""Whether a sequence whose attempt failed goes on at another one, and when.

In: how the attempt failed, the rules, what was tried before, now; out: a verdict with its why, and the new memory.
Pure.  A *gap* is the time between two tokens of one sequence in which attempts failed.
"""

from __future__ import annotations

import msgspec

RESUMABLE = frozenset({"engine_lost", "not_ready", "draining"})
"""Codes that say: this engine cannot, another one may, and trying again repeats nothing."""

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0


class RetryRules(msgspec.Struct, frozen=True, kw_only=True):
    """``max_resumes`` bounds failed attempts within one gap: a request that kills every engine ends there.

    ``first_wait_s``: how long a new request waits for a replica where one had been ready before.
    ``absent_s``: how long anybody waits while the desired state lists no replica at all, so that none is on its way.
    """

    max_resumes: int = 8
    resume_timeout_s: float = 60.0
    first_wait_s: float = 5.0
    absent_s: float = 10.0


class FailedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """``emitted_tokens``: how many the sequence has over all attempts.  ``accepted``: an engine had taken it up.

    ``others``: ready replicas that have not failed in this gap.  ``chance``: a number from 0 to 1 that was drawn.
    """

    code: str
    replica: str
    emitted_tokens: int
    accepted: bool
    others: int
    chance: float = 1.0


class RetryMemory(msgspec.Struct, frozen=True, kw_only=True):
    """The gap so far.  ``pause_s``: the last pause in it."""

    failures: int = 0
    emitted_tokens: int = 0
    since: float = 0.0
    avoid: frozenset[str] = frozenset()
    pause_s: float = 0.0


class RetryVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """When ``resume``: pause, then wait for a replica (rather none of ``avoid``) until ``deadline``."""

    resume: bool
    why: str
    pause_s: float = 0.0
    deadline: float = 0.0
    avoid: frozenset[str] = frozenset()


def decide(view: FailedAttempt, rules: RetryRules, memory: RetryMemory, now: float) -> tuple[RetryVerdict, RetryMemory]:
    """A resumable loss is resumed until the gap's bounds; an overloaded engine is left for a free one at once.

    A sequence that an engine had accepted is never given up for overload before the gap's bounds:
    after a loss, the surviving replicas are crowded for a moment.
    Pauses are decorrelated (Brooker 2015): each is drawn from between the first and thrice the one before, so that
    those who failed together do not come back together.
    """
    new_gap = memory.failures == 0 or view.emitted_tokens > memory.emitted_tokens
    memory = RetryMemory(
        failures=1 if new_gap else memory.failures + 1,
        emitted_tokens=view.emitted_tokens,
        since=now if new_gap else memory.since,
        avoid=(frozenset() if new_gap else memory.avoid) | {view.replica},
        pause_s=0.0 if new_gap else memory.pause_s,
    )
    deadline = memory.since + rules.resume_timeout_s
    why = _reason_to_give_up(view, rules, memory, deadline, now)
    if why is not None:
        return RetryVerdict(resume=False, why=why), memory
    free_elsewhere = view.others > 0
    pause_s = 0.0
    if memory.failures > 1 or (view.code == "overloaded" and not free_elsewhere):
        pause_s = longer_pause(memory.pause_s, view.chance)
        memory = msgspec.structs.replace(memory, pause_s=pause_s)
    verdict = RetryVerdict(
        resume=True,
        why=f"{view.code} at {view.replica} after {view.emitted_tokens} tokens: attempt {memory.failures} of "
        f"{rules.max_resumes} in this gap",
        pause_s=min(pause_s, max(deadline - now, 0.0)),
        deadline=deadline,
        avoid=memory.avoid,
    )
    return verdict, memory


def longer_pause(last_s: float, chance: float) -> float:
    """The next pause after one of ``last_s`` seconds; 0: there was none."""
    most_s = min(max(3.0 * last_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)
    return _FIRST_PAUSE_S + chance * (most_s - _FIRST_PAUSE_S)


def _reason_to_give_up(
    view: FailedAttempt, rules: RetryRules, memory: RetryMemory, deadline: float, now: float
) -> str | None:
    if view.code == "overloaded":
        if not view.accepted and view.others == 0:
            return "every ready replica is overloaded and nothing was promised yet"
    elif view.code not in RESUMABLE:
        return f"{view.code} would be the same anywhere"
    if memory.failures > rules.max_resumes:
        return f"{memory.failures} attempts failed without a new token; at most {rules.max_resumes} are made"
    if now >= deadline:
        return f"no replica took it up again within {rules.resume_timeout_s:g} s"
    return None
