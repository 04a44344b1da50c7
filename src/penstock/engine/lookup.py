"""Where the last tokens of a text stood before in it, and what followed them there.

In: the tokens of one sequence, which only grow; out: a continuation.  Knows nothing but integers.
Every token is entered once, in chains of places that share a hash (as in LZ77 compressors): about 8 bytes each.
"""

from __future__ import annotations

from array import array
from typing import NamedTuple

_MATCH = 3
"""Tokens that must agree before a place counts."""
_LONGEST = 16
"""Agreement is counted no further: longer ones are as good."""
_PLACES = 32
"""Places that are compared, latest first; bounds the time of a text that repeats one token."""
_ENTERED = 4096
"""Tokens entered in one call: a long prompt is taken in over several steps."""


class Match(NamedTuple):
    """What is proposed, and how many tokens before it agreed."""

    token_ids: list[int]
    length: int


class Lookup:
    """An index over one growing list of tokens (prompt look-up decoding, Saxena 2023)."""

    def __init__(self) -> None:
        self._heads = array("i")
        """By hash the latest place; their number is a power of two."""
        self._before = array("i")
        """For each place the one before it with the same hash."""

    def find(self, token_ids: list[int], most: int) -> Match | None:
        """Up to ``most`` tokens that followed the place that agrees longest with the end; of several the latest."""
        last = len(token_ids) - 1
        self._enter(token_ids, last)
        if last < _MATCH or len(self._before) < last:
            return None
        place, best, found = self._heads[self._slot(token_ids, last)], 0, -1
        for _ in range(_PLACES):
            if place < 0:
                break
            length = _agreement(token_ids, place, last)
            if length > best:
                best, found = length, place
                if length == _LONGEST:
                    break
            place = self._before[place]
        if best < _MATCH:
            return None
        return Match(_continued(token_ids, found, most), best)

    def _enter(self, token_ids: list[int], end: int) -> None:
        """Enter the places before ``end``.  A place is where a run of tokens ends."""
        before = self._before
        if 2 * len(self._heads) < end or not self._heads:
            self._spread(token_ids)
        end = min(end, len(before) + _ENTERED)
        for place in range(len(before), end):
            if place + 1 < _MATCH:
                before.append(-1)
                continue
            slot = self._slot(token_ids, place)
            before.append(self._heads[slot])
            self._heads[slot] = place

    def _spread(self, token_ids: list[int]) -> None:
        """Over as many chains as there are tokens by now."""
        self._heads = array("i", [-1]) * (1 << max(6, len(token_ids).bit_length()))
        for place in range(_MATCH - 1, len(self._before)):
            slot = self._slot(token_ids, place)
            self._before[place] = self._heads[slot]
            self._heads[slot] = place

    def _slot(self, token_ids: list[int], place: int) -> int:
        mixed = token_ids[place - 2] * 5_023_309 + token_ids[place - 1] * 40_507 + token_ids[place]
        return (mixed * 2_654_435_761 >> 16) & len(self._heads) - 1


def _agreement(token_ids: list[int], place: int, last: int) -> int:
    """How many tokens up to ``place`` are those up to ``last``."""
    length = 0
    while length < _LONGEST and length <= place and token_ids[place - length] == token_ids[last - length]:
        length += 1
    return length


def _continued(token_ids: list[int], place: int, most: int) -> list[int]:
    """What followed ``place``; where that is the end itself, the text is taken to repeat what lies between."""
    follow = token_ids[place + 1 : place + 1 + most]
    while len(follow) < most:
        follow += follow[: most - len(follow)]
    return follow
