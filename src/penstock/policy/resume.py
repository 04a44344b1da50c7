"""Which replicas may go on with a sequence that others began.  Pure.

In: what it was begun on, and what each replica computes; out: the replicas that may take it up.  Other weights are a
last resort, never a silent one, and none at all for a sequence that was promised the tokens of an undisturbed run;
another vocabulary never is: its token ids stand for other text.  Argued in docs/decisions/016-upgrades.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

import msgspec


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What a sequence was begun on; ``exact``: it was promised the very tokens of an undisturbed run."""

    weights: str
    vocabulary: str
    exact: bool


class ReplicaView(Protocol):
    """``weights`` and ``vocabulary`` are digests, empty while the replica has not said."""

    @property
    def weights(self) -> str: ...
    @property
    def vocabulary(self) -> str: ...
    @property
    def ready(self) -> bool: ...
    @property
    def routable(self) -> bool: ...


R = TypeVar("R", bound=ReplicaView)


def eligible(origin: Origin, replicas: Sequence[R]) -> list[R]:
    """The replicas of the same weights while one of them takes work; else, where that is allowed, of others."""
    same = [replica for replica in replicas if replica.weights == origin.weights]
    if origin.exact or any(replica.routable for replica in same):
        return same
    return [replica for replica in replicas if replica.vocabulary == origin.vocabulary]


def may_come(origin: Origin, replicas: Sequence[R]) -> bool:
    """Whether one that is listed could take it up, now or once it is ready: what still loads has not said what."""
    return bool(eligible(origin, replicas)) or any(not r.ready and not r.weights for r in replicas)
