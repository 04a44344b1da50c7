"""From a request's rules and a number to a token: filters, the draw, and where numbers come from."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.cpu.defaults import Rules
from penstock.engine.cpu.draw import seeds, table, uniforms
from penstock.models.fast.draw import AT, Drawer


def drawn(logits: list[float], rules: Rules, points: list[float]) -> list[int]:
    """What each of the numbers in [0, 1) draws from one row."""
    row = torch.tensor(logits)
    numbers = table([rules] * len(points))
    numbers[:, AT] = points
    return Drawer().tokens(np.full(len(points), row.data_ptr()), numbers, len(row))


def reachable(logits: list[float], rules: Rules) -> set[int]:
    """Every token that some number in [0, 1) draws."""
    return set(drawn(logits, rules, [i / 997 for i in range(997)] + [0.0, math.nextafter(1.0, 0.0)]))


def uniform(seed: int, position: int) -> float:
    return float(uniforms(seeds([seed]), np.array([position % 2**64], np.uint64).astype(np.int64))[0])


def logs(*probabilities: float) -> list[float]:
    return [math.log(p) for p in probabilities]


def test_top_k_keeps_k() -> None:
    """Top-k leaves the k most probable tokens."""
    assert reachable(logs(0.1, 0.4, 0.2, 0.3), Rules(seed=0, top_k=2)) == {1, 3}


@pytest.mark.parametrize("top_k", [0, 4, 99, 1 << 62])
def test_top_k_beyond_the_vocabulary_keeps_all(top_k: int) -> None:
    """Top-k of 0, or of the vocabulary's size or more, filters nothing."""
    assert reachable(logs(0.1, 0.4, 0.2, 0.3), Rules(seed=0, top_k=top_k)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.0, {1}), (0.39, {1}), (0.41, {1, 3}), (0.71, {1, 2, 3}), (0.95, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_smallest_sufficient_set(top_p: float, kept: set[int]) -> None:
    """Top-p keeps the most probable tokens until they hold p, and always one."""
    assert reachable(logs(0.1, 0.4, 0.2, 0.3), Rules(seed=0, top_p=top_p)) == kept


def test_top_p_counts_after_top_k() -> None:
    """Top-p measures the mass that top-k left."""
    assert reachable(logs(0.1, 0.4, 0.2, 0.3), Rules(seed=0, top_k=2, top_p=0.55)) == {1}


def test_ties_all_stay_at_the_edge_of_top_k_and_the_first_ones_at_that_of_top_p() -> None:
    """Two of four equals are wanted: by number all four come, by mass the two with the lowest ids."""
    equals = logs(0.1, 0.2, 0.2, 0.1, 0.2, 0.2)
    assert reachable(equals, Rules(seed=0, top_k=2)) == {1, 2, 4, 5}
    assert reachable(equals, Rules(seed=0, top_p=0.39)) == {1, 2}


def test_min_p_is_relative_to_the_best() -> None:
    """Min-p drops tokens less probable than its share of the best one."""
    assert reachable(logs(0.1, 0.4, 0.2, 0.3), Rules(seed=0, min_p=0.6)) == {1, 3}
    assert reachable(logs(0.1, 0.4, 0.2, 0.3), Rules(seed=0, min_p=1.5)) == {1}


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=50),
    top_p=st.floats(0.0, 1.0),
    temperature=st.floats(0.05, 5.0),
)
def test_the_nucleus_is_minimal(logits: list[float], top_p: float, temperature: float) -> None:
    """What top-p leaves is what sorting all tokens and cutting at p leaves."""
    rules = Rules(seed=0, top_p=top_p, temperature=temperature)
    weights = ((torch.tensor(logits) - max(logits)) / temperature).exp().double()
    ordered, order = weights.sort(descending=True, stable=True)
    before = (ordered.cumsum(0) - ordered) / ordered.sum()
    certain = {int(t) for t, b in zip(order, before, strict=True) if b < top_p - 1e-6} | {int(order[0])}
    possible = {int(t) for t, b in zip(order, before, strict=True) if b < top_p + 1e-6} | {int(order[0])}
    tokens = drawn(logits, rules, [i / 50 for i in range(50)])
    assert set(tokens) <= possible
    assert tokens[0] == min(certain) or len(possible) > len(certain)


def test_draws_follow_the_distribution() -> None:
    """Over many positions tokens come as often as their probabilities say (chi-squared, 3 degrees, p = 1e-6)."""
    probabilities, draws = (0.1, 0.4, 0.2, 0.3), 4000
    points = uniforms(seeds([3] * draws), np.arange(draws)).tolist()
    counts = Counter(drawn(logs(*probabilities), Rules(seed=3), points))
    assert sum((counts[i] - draws * p) ** 2 / (draws * p) for i, p in enumerate(probabilities)) < 30.7


@given(seed=st.integers(-(2**63), 2**64 - 1), position=st.integers(0, 2**31))
def test_any_64_bit_seed_gives_a_number_in_range(seed: int, position: int) -> None:
    """Negative and huge seeds are as good as any, and neighbours give other numbers."""
    at = uniform(seed, position)
    assert 0.0 <= at < 1.0
    assert at not in (uniform(seed, position + 1), uniform(seed + 1, position), uniform(position, seed + 1))


def test_seeds_mean_tomorrow_what_they_meant_yesterday() -> None:
    """Numbers of the releases before: a stream that is resumed by a newer engine goes on as it began."""
    assert [uniform(0, 0), uniform(7, 1000), uniform(-1, 5)] == [
        0.6524484863740322,
        0.4553947926030284,
        0.20852775745463303,
    ]


@pytest.mark.parametrize("logits", [[math.nan] * 4, [math.inf, 0.0, 1.0, 2.0], [-math.inf] * 4])
def test_logits_that_are_not_finite_still_give_a_token(logits: list[float]) -> None:
    """A broken model yields some token of the vocabulary instead of an error for the whole step."""
    rules = Rules(seed=0, top_k=2, top_p=0.5, min_p=0.1)
    assert drawn(logits, rules, [0.5]) == [0]


def test_no_number_is_never_drawn() -> None:
    """Among numbers, NaN weighs nothing."""
    assert reachable([math.nan, 1.0, math.nan, 1.0], Rules(seed=0)) == {1, 3}
