"""Which replica takes a sequence: the one with the fewest outstanding tokens.

In: a view of the model's replicas; out: a verdict with its why.  Pure: no clock, no I/O, no randomness.
Outstanding tokens are the gateway's own estimate (prompt bytes / 4 + expected output), so they need no tokenizer
and are exact about what this gateway sent and has not seen the end of.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec


class ReplicaView(Protocol):
    """What routing reads of a replica; live state, never a copy."""

    @property
    def id(self) -> str: ...
    @property
    def routable(self) -> bool:
        """Ready and not draining."""

    @property
    def outstanding_tokens(self) -> int: ...
    @property
    def outstanding_requests(self) -> int: ...
    @property
    def last_routed(self) -> int:
        """A count that grows with every routing decision: breaks ties in turn."""


class RouteVerdict(msgspec.Struct, frozen=True):
    """``replica`` is ``None`` when none can take it now."""

    replica: str | None
    why: str


def choose(replicas: Iterable[ReplicaView], avoid: frozenset[str] = frozenset()) -> RouteVerdict:
    """Least outstanding tokens, then requests, then the one that waited longest.

    ``avoid`` (replicas that just lost this sequence) is a wish: they are taken when nothing else is routable.
    """
    best: ReplicaView | None = None
    best_key: tuple[bool, int, int, int] | None = None
    total = routable = 0
    for replica in replicas:
        total += 1
        if not replica.routable:
            continue
        routable += 1
        key = (replica.id in avoid, replica.outstanding_tokens, replica.outstanding_requests, replica.last_routed)
        if best_key is None or key < best_key:
            best, best_key = replica, key
    if best is None:
        return RouteVerdict(None, f"none of {total} replicas is ready")
    return RouteVerdict(
        best.id,
        f"fewest outstanding tokens ({best.outstanding_tokens} in {best.outstanding_requests} requests) "
        f"of {routable} ready replicas out of {total}",
    )
