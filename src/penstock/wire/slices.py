"""What gateways that share limits say to the store of their slices, and what it answers.

In: per rule, all that a gateway holds, and what it wants beyond; out: what it is given.
A statement replaces the gateway's last one, so an answer that was lost, or a store that forgot, is mended by the next.
Amounts are whole units, times are seconds of the store's clock.  Argued in docs/decisions/014-slices.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import msgspec

MOST = 2**53 - 1
"""No amount is larger: the store counts in doubles."""
SETTLE_S = 1.0
"""A store that began just now, perhaps without memory, gives nothing for so long: every gateway states what it has."""
SEED_S = 3.0
"""And for so long it waits to be told what was used before it began and still counts."""
SHARE_OF_LEFT = 8
"""Beyond what calls wait for, a gateway gets at most one part in so many of what is left."""

Status = Literal["given", "another window", "settling", "unusable"]
"""``unusable``: what the store has of this rule is not ours, and nothing is given of it until somebody removes it."""


class Ask(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One rule of ``amount``, named by ``key``, as one gateway stands with it.

    ``slots``: (until, amount), what it has granted and until when that counts; ``rest``: what it holds besides,
    ``free`` of which is not granted yet; it counts for ``hold_s`` from now, or until ``end`` where there is a window
    from ``begin`` to ``end``.  ``needs``: what calls wait for, in their order, each whole or not at all; ``extra``:
    what it would like to have beyond.  ``counts_from``: what was used from then on still counts (0: nothing that has
    ended does); a store that began later is told so by ``seeds``, what each writer has used as the ledger has it;
    ``None``: not known here.
    """

    key: str
    amount: int
    slots: tuple[tuple[int, int], ...] = ()
    rest: int = 0
    free: int = 0
    needs: tuple[int, ...] = ()
    extra: int = 0
    begin: int = 0
    end: int = 0
    hold_s: int = 0
    counts_from: int = 0
    seeds: dict[str, int] | None = None


class Answer(NamedTuple):
    """``given`` is added to what was stated.  ``left``: what nobody holds; ``whole_s``: until everything is left.

    ``fits_s``: for each need: ``None`` if it fits, else in how many seconds it will if nobody else asks.
    """

    status: Status
    given: int = 0
    left: int = 0
    whole_s: float = 0.0
    fits_s: tuple[float | None, ...] = ()


class Taken(NamedTuple):
    """``now`` by the store's clock; ``epoch`` changes when the store may have forgotten something.

    ``answers`` are aligned with what was asked.
    """

    now: float
    epoch: str
    answers: Sequence[Answer]
