"""Whether a replica is left out for a while because what it takes up keeps failing: a circuit breaker per replica.

In: a failed or finished attempt, what is remembered of the replica, now; out: what to remember.  Pure.
Many sequences lost at one moment are one incident: only an attempt that began after the last failure is news.
When its time is over, one sequence tries it; the others keep away until that one has its first token, and until one
came to its own end a failure leaves the replica out again, for longer.
"""

from __future__ import annotations

import msgspec

FAULTS = frozenset({"engine_lost", "engine_protocol", "internal_error", "not_finite"})
"""Codes that speak against the replica, not against the request or the hour."""

_INCIDENTS = 3
_FIRST_S = 1.0
_LONGEST_S = 30.0


class Health(msgspec.Struct, frozen=True):
    """``incidents`` in a row; the last one ended at ``failed_at``; left out until ``until``."""

    incidents: int = 0
    failed_at: float = float("-inf")
    until: float = float("-inf")


HEALTHY = Health()


def after_failure(health: Health, code: str, began_at: float, now: float) -> Health:
    """An attempt that began at ``began_at`` failed.  From the third incident on it is left out, ever longer."""
    if code not in FAULTS or began_at <= health.failed_at:
        return health
    incidents = health.incidents + 1
    until = health.until
    if incidents >= _INCIDENTS:
        until = now + min(_FIRST_S * 2.0 ** min(incidents - _INCIDENTS, 60), _LONGEST_S)
    return Health(incidents, now, until)


def on_trial(health: Health, now: float) -> bool:
    """Its time is over, and nothing has come to its own end there since."""
    return health.incidents >= _INCIDENTS and health.until <= now


def ejected(health: dict[str, Health], now: float, probed: frozenset[str] = frozenset()) -> frozenset[str]:
    """The replicas that are left out now; nobody, where that would be more than half of them.

    ``probed``: a sequence that tries them has no first token yet.
    """
    out = frozenset(id for id, one in health.items() if one.until > now or (id in probed and on_trial(one, now)))
    return out if 2 * len(out) <= len(health) else frozenset()
