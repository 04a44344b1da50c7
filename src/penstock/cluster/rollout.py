"""One rolling upgrade inside the controller: which engines take whose place, and how far that is.

In: what was observed of the engines; out: a duty for each, and a status for people.  ``policy.rollout`` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import msgspec

from penstock.policy.rollout import (
    Duty,
    ReplicaView,
    RolloutMemory,
    RolloutRules,
    RolloutView,
    decide,
)

RolloutState = Literal["rolling", "rolling_back", "done", "rolled_back", "stuck"]


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One process that should run.  ``socket``: where an engine speaks its protocol, a gateway its control routes.

    ``model``: which one an engine serves; empty: the service's first.
    """

    id: str
    kind: Literal["engine", "gateway"]
    socket: str
    model: str = ""


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """``num_replaced`` of ``num_replicas`` are of the new source.  ``why``: what it does, or how it came to its end."""

    state: RolloutState
    why: str
    num_replaced: int
    num_replicas: int


class Rollout:
    """From old members to as many new ones.  Call :meth:`step` until :attr:`is_over`."""

    def __init__(self, old: Sequence[Member], new: Sequence[Member], rules: RolloutRules, now: float) -> None:
        assert len(old) == len(new)
        self._old, self._new = list(old), list(new)
        self._rules = rules
        self._memory = RolloutMemory(since=now)
        self._why = "begins"
        self._duties: dict[str, Duty] = {}
        self._stop = ""

    @property
    def members(self) -> list[Member]:
        return [*self._old, *self._new]

    @property
    def is_over(self) -> bool:
        return self._memory.outcome is not None

    @property
    def status(self) -> RolloutStatus:
        memory = self._memory
        state: RolloutState = memory.outcome or ("rolling" if memory.direction == "forward" else "rolling_back")
        return RolloutStatus(
            state=state,
            why=self._why,
            num_replaced=sum(old.id not in self._duties for old in self._old) if self._duties else 0,
            num_replicas=len(self._new),
        )

    def stop(self, why: str) -> None:
        """Go back with the next step."""
        self._stop = self._stop or why

    def step(self, view_of: Callable[[Member], ReplicaView], settled: bool, now: float) -> dict[str, Duty]:
        """What every engine is to do; who is not named is to end."""
        view = RolloutView(
            old=[view_of(member) for member in self._old],
            new=[view_of(member) for member in self._new],
            settled=settled,
            stop=self._stop,
        )
        verdict, self._memory = decide(view, self._rules, self._memory, now)
        self._why, self._duties = verdict.why, verdict.duties
        return verdict.duties
