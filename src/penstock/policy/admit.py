"""Who goes on to an engine now, who waits, and who is sent away, when there is more work than room.

In: what waits, what comes, the room there is, fair shares so far, now; out: a verdict with its why, and the memory.
Pure.  Tenants share by start-time fair queueing (Goyal, Vin and Cheng, 1996) with tokens as the cost: of two tenants
that both have something waiting, neither gets ahead of its weight by more than one request of each.
Argued in docs/decisions/013-a-queue-before-the-engines.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

Action = Literal["go", "wait", "refuse"]

_LEAST_RETRY_S = 1.0


class AdmitRules(msgspec.Struct, frozen=True, kw_only=True):
    """``max_waiting`` requests wait, none of them longer than ``max_wait_s``.

    ``ageing_s``: after so long a request counts as one priority higher, up to the highest that waits, so that none
    waits for ever.
    """

    max_waiting: int = 1024
    max_wait_s: float = 30.0
    ageing_s: float = 5.0


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A request that wants to go on.  ``cost`` in tokens; a higher ``priority`` goes first.

    ``start``: its tag in virtual tokens, given on arrival; among equal priorities the lowest goes first.
    """

    id: str
    tenant: str
    cost: int
    weight: float = 1.0
    priority: int = 0
    arrived: float = 0.0
    start: float = 0.0


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """``capacity``: tokens that the ready replicas can hold, ``None``: nobody says; ``running``: those of what went on.

    ``drained_per_s``: tokens per second that have lately left.
    """

    capacity: int | None
    running: int
    drained_per_s: float = 0.0


class Shares(msgspec.Struct, frozen=True):
    """Memory: the virtual time, and where each tenant's last request ends in it, if that is later."""

    virtual: float = 0.0
    ends: tuple[tuple[str, float], ...] = ()


class AdmitVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """``entry`` is the request with its tag.  ``shed``: a waiting request that has to leave for it.

    ``retry_after_s``: when what waits now is predicted to be gone, for whoever is refused or shed.
    """

    action: Action
    why: str
    entry: Entry
    shed: Entry | None = None
    retry_after_s: float = 1.0


def arrive(
    entry: Entry, waiting: Sequence[Entry], room: Room, rules: AdmitRules, shares: Shares, now: float
) -> tuple[AdmitVerdict, Shares]:
    """A request comes.  It goes on if nobody waits and there is room, else it waits, or somebody is refused."""
    ends = dict(shares.ends)
    start = max(shares.virtual, ends.get(entry.tenant, 0.0))
    entry = msgspec.structs.replace(entry, arrived=now, start=start)
    retry_after_s = max(_LEAST_RETRY_S, _drain_s(waiting, room))
    shed: Entry | None = None
    if waiting or not _fits(entry, room):
        if len(waiting) >= rules.max_waiting:
            shed = _above_its_share(entry, waiting)
            if shed is None:
                why = f"{len(waiting)} requests wait already, and {entry.tenant} has its share of them"
                return AdmitVerdict(action="refuse", why=why, entry=entry, retry_after_s=retry_after_s), shares
        wait_s = _wait_s(entry, waiting, room)
        if wait_s > rules.max_wait_s:
            why = f"its turn would come in {wait_s:.3g} s, and nobody waits for more than {rules.max_wait_s:g} s"
            return AdmitVerdict(action="refuse", why=why, entry=entry, retry_after_s=retry_after_s), shares
    ends[entry.tenant] = start + entry.cost / entry.weight
    if waiting or not _fits(entry, room):
        why = f"{len(waiting)} requests wait and {room.running} of {room.capacity} tokens are taken"
        verdict = AdmitVerdict(action="wait", why=why, entry=entry, shed=shed, retry_after_s=retry_after_s)
        return verdict, Shares(shares.virtual, tuple(ends.items()))
    why = f"nobody waits and {room.running} of {room.capacity} tokens are taken"
    return AdmitVerdict(action="go", why=why, entry=entry), _served(entry, Shares(shares.virtual, tuple(ends.items())))


def next_up(
    waiting: Sequence[Entry], room: Room, rules: AdmitRules, shares: Shares, now: float
) -> tuple[Entry | None, Shares]:
    """Which of those that wait goes on now; ``None``: there is no room for the one whose turn it is."""
    if not waiting:
        return None, shares

    # Nobody ages beyond the highest priority that waits: among those that have it, the shares decide, not the age.
    highest = max(entry.priority for entry in waiting)

    def turn(entry: Entry) -> tuple[float, float, float]:
        aged = min(highest, entry.priority + (now - entry.arrived) // rules.ageing_s)
        return -aged, entry.start, entry.arrived

    first = min(waiting, key=turn)
    # Nobody overtakes the one whose turn it is, however small: a large request would never get its room.
    return (first, _served(first, shares)) if _fits(first, room) else (None, shares)


def _drain_s(waiting: Sequence[Entry], room: Room) -> float:
    """When all of these have gone on, at the speed of late; 0 where there is none to predict from."""
    if room.drained_per_s <= 0 or room.capacity is None:
        return 0.0
    return max(0, sum(entry.cost for entry in waiting) + room.running - room.capacity) / room.drained_per_s


def _fits(entry: Entry, room: Room) -> bool:
    # What is larger than everything goes alone: it would never fit, and its engine has the better words for it.
    return room.capacity is None or room.running == 0 or room.running + entry.cost <= room.capacity


def _wait_s(entry: Entry, waiting: Sequence[Entry], room: Room) -> float:
    """When the request is predicted to go on, after all that has an earlier turn."""
    before = [other for other in waiting if (-other.priority, other.start) <= (-entry.priority, entry.start)]
    return _drain_s([*before, entry], room)


def _above_its_share(entry: Entry, waiting: Sequence[Entry]) -> Entry | None:
    """The last request of the tenant that waits with most per weight, if that is more than ``entry``'s would be."""
    counts: dict[str, int] = {}
    weights: dict[str, float] = {}
    for other in waiting:
        counts[other.tenant] = counts.get(other.tenant, 0) + 1
        weights[other.tenant] = other.weight
    most = max(counts, key=lambda tenant: counts[tenant] / weights[tenant])
    if most == entry.tenant or counts[most] / weights[most] <= (counts.get(entry.tenant, 0) + 1) / entry.weight:
        return None
    return max((other for other in waiting if other.tenant == most), key=lambda other: other.start)


def _served(entry: Entry, shares: Shares) -> Shares:
    virtual = max(shares.virtual, entry.start)
    return Shares(virtual, tuple((tenant, end) for tenant, end in shares.ends if end > virtual))
