"""Who gives way: whose KV blocks, or whose place in a step, somebody else gets.

In: what runs, in order of protection, and who needs room; out: victims.  Pure.
The first of what runs may take from everybody, so it always progresses; and a work that gave way once gives way no more
to newcomers, so nobody is sent back and forth.  Argued in docs/decisions/021-fair-batches.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Items
from typing import Protocol, TypeVar

from penstock.policy.fair import Served


class Holder(Served, Protocol):
    """A running work.  ``epoch`` counts how often it gave way."""

    @property
    def block_ids(self) -> list[int]: ...
    @property
    def epoch(self) -> int: ...


H = TypeVar("H", bound=Holder)


def who_yields_to_growth(running: Items[H], gone: set[int], index: int, held: Mapping[str, float]) -> int | None:
    """The position of who gives its blocks to ``running[index]``; ``None``: nobody has to, so it stalls.

    The worst level first, then the tenant that holds most (``held``: blocks over weight), then the latest admitted.
    At its own level a work takes from those behind it whose tenant holds no less, and from one before it only if that
    one's tenant would then still hold more than its own.  ``gone``: positions that gave way already.
    """
    me = running[index]
    mine = held[me.tenant]
    is_first = all(position in gone for position in range(index))
    best: tuple[int, float, int] | None = None
    for position, other in enumerate(running):
        if position == index or position in gone or other.level < me.level:
            continue
        theirs = held[other.tenant]
        if other.level == me.level:
            if position > index:
                if theirs < mine and not is_first:
                    continue
            elif other.tenant == me.tenant or other.epoch or theirs - len(other.block_ids) / other.weight <= mine:
                continue
        key = (other.level, theirs, position)
        if best is None or key > best:
            best = key
    return None if best is None else best[2]


def who_yields_to_newcomer(
    running: Items[H],
    newcomer: Served,
    level: int,
    size: float,
    lacking: float,
    shares: Mapping[str, float],
    freed: Callable[[H], float],
) -> list[int]:
    """Positions of those that make room for a waiting work; empty when they cannot, or should not.

    ``shares``: what each tenant has of the thing that is short, over its weight; the newcomer wants ``size`` of it,
    ``lacking`` of that is not there, and ``freed`` is what a work would give back.  Works of a worse level give way,
    and at its own level those of a tenant that has more than the newcomer's would have; none of them twice in its life.
    """
    taken: list[int] = []
    shares = dict(shares)
    mine = shares.get(newcomer.tenant, 0.0) + size / newcomer.weight
    while lacking > 0:
        best: tuple[int, float, int] | None = None
        for position, other in enumerate(running):
            if other.epoch or other.level < level or position in taken:
                continue
            if other.level == level and (other.tenant == newcomer.tenant or shares[other.tenant] <= mine):
                continue
            key = (other.level, shares[other.tenant], position)
            if best is None or key > best:
                best = key
        if best is None:
            return []
        victim = running[best[2]]
        gain = freed(victim)
        lacking -= gain
        shares[victim.tenant] -= gain / victim.weight
        taken.append(best[2])
    return taken
