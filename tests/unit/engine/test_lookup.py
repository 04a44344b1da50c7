"""Prompt look-up: what followed the same tokens before."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.engine.lookup import Lookup, Match

SMALL = st.lists(st.integers(0, 2), max_size=60)


def by_scanning(token_ids: list[int], most: int) -> Match | None:
    """The same answer without an index."""
    last, best, found = len(token_ids) - 1, 0, -1
    for place in reversed(range(last)):
        length = 0
        while length < 16 and length <= place and token_ids[place - length] == token_ids[last - length]:
            length += 1
        if length > best:
            best, found = length, place
    if best < 3:
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
        found, expected = lookup.find(text, most), by_scanning(text, most)
        if expected is None or expected.length == 16 or len(text) <= 32:
            assert found == expected
        else:  # of more places than are compared it may have missed the longest
            assert found is not None and found.length >= 3


def test_a_period_goes_on() -> None:
    """Where a text repeats itself the proposal repeats it, beyond what there is of it."""
    match = Lookup().find([7, 8, 9, 1, 2, 3, 1, 2, 3], 8)
    assert match == Match([1, 2, 3, 1, 2, 3, 1, 2], 3)


@pytest.mark.parametrize("token_ids", [[], [1], [1, 1], [1, 1, 1], [1, 2, 3, 4, 2, 3]])
def test_nothing_is_proposed_without_three_tokens_that_were_there_before(token_ids: list[int]) -> None:
    """Short texts and short agreements bring nothing, and no error."""
    assert Lookup().find(token_ids, 4) is None


def test_a_long_text_is_taken_in_over_several_calls() -> None:
    """Of 20,000 tokens a call enters 4,096, so that no step waits for more; then the first of them is found."""
    dice = random.Random(1)
    token_ids = [dice.randrange(100_000) for _ in range(20_000)]
    token_ids += token_ids[:5]
    lookup = Lookup()
    found = [lookup.find(token_ids, 4) for _ in range(5)]
    assert found == [None, None, None, None, Match(token_ids[5:9], 5)]


def test_a_text_of_one_token_costs_no_more_than_another() -> None:
    """A hundred thousand equal tokens, and as many of two kinds by turns, are asked about in microseconds each."""
    for period in (1, 2, 17):
        token_ids = [i % period for i in range(20_000)]
        lookup = Lookup()
        while lookup.find(token_ids, 8) is None:
            pass
        begin = time.process_time()
        for _ in range(1000):
            token_ids.append(token_ids[-period])
            lookup.find(token_ids, 8)
        assert time.process_time() - begin < 0.1
