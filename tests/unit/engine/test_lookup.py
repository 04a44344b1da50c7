"""Prompt look-up: what followed the same tokens before."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.lookup import AGREEMENTS, Lookup, Match

SMALL = st.lists(st.integers(0, 2), max_size=60)


def by_scanning(token_ids: list[int], most: int) -> Match | None:
    """The same answer, place by place."""
    last, best, found = len(token_ids) - 1, 0, -1
    for place in reversed(range(last)):
        length = 0
        while length < 16 and length <= place and token_ids[place - length] == token_ids[last - length]:
            length += 1
        length = max((agreed for agreed in AGREEMENTS if agreed <= length), default=0)
        if length > best:
            best, found = length, place
    if not best:
        return None
    text = list(token_ids)
    for step in range(most):
        text.append(text[found + 1 + step])
    return Match(text[len(token_ids) :], best)


@settings(max_examples=300, deadline=None)
@given(SMALL, st.integers(1, 9), st.lists(st.integers(1, 7), min_size=1, max_size=60))
def test_it_finds_what_a_scan_finds_however_the_text_grew(token_ids: list[int], most: int, growth: list[int]) -> None:
    """At every length that it is asked at, the longest agreement, the latest of several, and what followed it."""
    lookup, length = Lookup(), 0
    for more in growth:
        length = min(length + more, len(token_ids))
        text = token_ids[:length]
        assert lookup.find(text, most) == by_scanning(text, most)


def test_a_period_goes_on() -> None:
    """Where a text repeats itself the proposal repeats it, beyond what there is of it."""
    match = Lookup().find([7, 8, 9, 1, 2, 3, 1, 2, 3], 8)
    assert match == Match([1, 2, 3, 1, 2, 3, 1, 2], 3)


@pytest.mark.parametrize("token_ids", [[], [1], [1, 1], [1, 1, 1], [1, 2, 3, 4, 2, 3]])
def test_nothing_is_proposed_without_three_tokens_that_were_there_before(token_ids: list[int]) -> None:
    """Short texts and short agreements bring nothing, and no error."""
    assert Lookup().find(token_ids, 4) is None


def test_every_token_of_a_large_vocabulary_is_told_from_the_others() -> None:
    """Also those whose numbers are no character of any text."""
    token_ids = [0xD800, 0xDFFF, 0xFFFF, 0x10000, 0x10FFFF, 0, 1]
    lookup = Lookup()
    assert lookup.find(token_ids, 2) is None
    assert lookup.find(token_ids + token_ids[:4], 3) == Match([0x10FFFF, 0, 1], 4)


def test_what_lies_far_back_is_not_looked_at() -> None:
    """A search goes over 65,536 tokens at most, so that it takes no longer for the longest context."""
    for between, found in ((65_000, True), (66_000, False)):
        token_ids = [1, 2, 3, *range(10, 10 + between), 1, 2, 3]
        assert (Lookup().find(token_ids, 4) is not None) is found
