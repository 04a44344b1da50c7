"""Where the last tokens of a text stood before in it, and what followed them there.

In: the tokens of one sequence, which only grow; out: a continuation.  Knows nothing but integers.
A text of tokens is kept as a string with a character for each, since searching strings is what Python does fastest.
"""

from __future__ import annotations

from typing import NamedTuple

AGREEMENTS = (3, 4, 8, 16)
"""Tokens that must agree before a place counts, and how many are tried beyond that: longer ones are as good."""
_WITHIN = 1 << 16
"""Tokens back that a place may lie: bounds the time of a search, some 0.1 ms, and 0.5 ms in texts made to be slow."""


class Match(NamedTuple):
    """What is proposed, and how many tokens before it agreed: the most of ``AGREEMENTS``."""

    token_ids: list[int]
    length: int


class Lookup:
    """A search in one growing list of tokens (prompt look-up decoding, Saxena 2023)."""

    def __init__(self) -> None:
        self._text = ""

    def find(self, token_ids: list[int], most: int) -> Match | None:
        """Up to ``most`` tokens that followed the place that agrees longest with the end; of several the latest."""
        text, size = self._text, len(token_ids)
        if len(text) < size:
            text = self._text = text + "".join(map(chr, token_ids[len(text) :]))
        first, end, length = max(0, size - _WITHIN), size - 1, 0
        for longer in AGREEMENTS:
            place = text.rfind(text[-longer:], first, end) if longer < size else -1
            if place < 0:
                break
            # What agrees longer ends here or before.
            length, end = longer, place + longer
        return Match(_continued(token_ids, end, most), length) if length else None


def _continued(token_ids: list[int], start: int, most: int) -> list[int]:
    """What begins at ``start``; where it ends with the text, that is taken to repeat what lies between."""
    follow = token_ids[start : start + most]
    while len(follow) < most:
        follow += follow[: most - len(follow)]
    return follow
