"""Drawing without sorting, against sorting."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
import pytest
import torch

from penstock.models.fast import team
from penstock.models.fast.draw import (
    AT,
    INVERSE_TEMPERATURE,
    MIN_P,
    NUM_RULES,
    TOP_K,
    TOP_P,
    Doubles,
    Drawer,
    Floats,
    Ints,
)

SIZES = (1, 15, 16, 17, 255, 256, 300, 4096, 5003)
RULES = list(product((0, 1, 7, 200), (1.0, 0.9, 0.3, 0.0), (0.0, 0.05)))


def drawn(rows: list[Floats], rules: Doubles) -> list[int]:
    return Drawer().tokens(np.array([row.ctypes.data for row in rows]), rules, len(rows[0]))


def rule(top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, at: float = 0.0, temperature: float = 1.0) -> Doubles:
    own = np.zeros(NUM_RULES)
    own[[INVERSE_TEMPERATURE, TOP_K, TOP_P, MIN_P, AT]] = 1 / temperature, top_k, top_p, min_p, at
    return own


def by_sorting(row: Floats, own: Doubles) -> Doubles:
    """Each token's probability, in float64."""
    known = np.where(np.isnan(row), -np.inf, row.astype(np.float64))
    weights = np.exp((known - known.max()) * own[INVERSE_TEMPERATURE])
    order = np.argsort(-weights, kind="stable")
    if 0 < own[TOP_K] < len(row):
        weights[weights < weights[order[int(own[TOP_K]) - 1]]] = 0
    if own[TOP_P] < 1.0:
        before = np.cumsum(weights[order]) - weights[order]
        kept = np.count_nonzero(before < own[TOP_P] * weights.sum())
        weights[order[max(1, kept) :]] = 0
    weights[weights < own[MIN_P]] = 0
    shares: Doubles = weights / weights.sum()
    return shares


def distributions(size: int) -> Iterator[Floats]:
    """Flat and steep ones, with many equals and with barred tokens."""
    dice = np.random.default_rng(size)
    for spread in (0.1, 3.0, 30.0):
        row = dice.normal(0.0, spread, size).astype(np.float32)
        yield row
        yield torch.from_numpy(row).bfloat16().float().numpy()
        barred = row.copy()
        barred[dice.random(size) < 0.9] = -np.inf
        barred[dice.integers(size)] = np.float32(1.0)
        yield barred


@pytest.mark.parametrize("size", SIZES)
def test_every_token_has_its_probability(size: int) -> None:
    """Numbers spread evenly over [0, 1) draw each token as often as sorting says, to one draw and a millionth of all.

    By number, by mass and by share of the best, alone and together, for distributions of every kind.
    """
    num_points = 1000 if size < 1000 else 100
    points = (np.arange(num_points) + 0.5) / num_points
    for row, (top_k, top_p, min_p) in product(distributions(size), RULES):
        own = rule(top_k, top_p, min_p, temperature=0.7)
        rules = np.repeat(own[None], len(points), axis=0)
        rules[:, AT] = points
        counts = np.bincount(drawn([row] * len(points), rules), minlength=size)
        # What lies within rounding of an edge may fall on either side.
        edges = [min(1.0, top_p * factor) for factor in (1.0, 1 + 1e-6, 1 - 1e-6)]
        nearby = [by_sorting(row, rule(top_k, edge, min_p, temperature=0.7)) for edge in edges]
        assert min(np.abs(counts - len(points) * shares).max() for shares in nearby) < 1.01, (top_k, top_p, min_p)


def test_the_first_of_equals_are_the_nucleus_of_a_flat_row() -> None:
    """Where all of a large vocabulary is equal, half of the mass is the first half of the ids."""
    row = np.full(151_936, 3.0, np.float32)
    points = np.array([0.0, 0.5, math.nextafter(1.0, 0.0)])
    rules = np.stack([rule(top_p=0.5, at=at) for at in points])
    assert drawn([row] * 3, rules) == [0, 151_936 // 4, 151_936 // 2 - 1]


def test_a_nucleus_of_nearly_all_leaves_all() -> None:
    """Where rounding leaves less than is wanted, nothing is dropped: neither of unequal tokens nor of equal ones."""
    top_p, points = math.nextafter(1.0, 0.0), (np.arange(5000) + 0.5) / 5000
    for row in (np.random.default_rng(3).uniform(-1, 0, 5000).astype(np.float32), np.zeros(5000, np.float32)):
        rules = np.stack([rule(top_p=top_p, at=at) for at in points])
        every = rules.copy()
        every[:, TOP_P] = 1.0
        assert drawn([row] * 5000, rules) == drawn([row] * 5000, every)


def test_a_number_at_the_border_of_two_tokens_draws_the_second() -> None:
    """Also where a chunk begins."""
    row = np.zeros(512, np.float32)
    points = [255 / 512, 256 / 512, 257 / 512]
    assert drawn([row] * 3, np.stack([rule(at=at) for at in points])) == [255, 256, 257]


def test_the_last_token_of_a_large_vocabulary_can_be_drawn() -> None:
    """And its neighbours, where it begins no register and no chunk."""
    for size in (151_936, 262_144 + 3):
        row = np.full(size, -40.0, np.float32)
        row[-1] = 0.0
        row[-2] = math.log(0.5)
        assert drawn([row] * 2, np.stack([rule(at=0.1), rule(at=0.9)])) == [size - 2, size - 1]


def test_rows_and_threads_change_no_token() -> None:
    """A row draws the same token alone and among many, by one thread and by four."""
    dice = np.random.default_rng(0)
    rows = [dice.normal(0, 2, 60_001).astype(np.float32) for _ in range(40)]
    rules = np.stack([rule(*RULES[i % len(RULES)], at=dice.random()) for i in range(len(rows))])
    rules[::7, INVERSE_TEMPERATURE] = 0.0
    alone = [drawn([row], own[None])[0] for row, own in zip(rows, rules, strict=True)]
    assert drawn(rows, rules) == alone
    assert alone[::7] == [int(row.argmax()) for row in rows[::7]]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for _ in range(20):
            assert drawn(rows, rules) == alone
    finally:
        torch.set_num_threads(threads)


def test_few_logits_wait_for_no_other_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neighbour that keeps one from its core would hold up what takes a tenth of a millisecond; many are shared."""
    forked: list[int] = []
    fork = team._fork()

    def counted(address: int, call: Callable[[int], None], block: Ints, num_threads: int) -> None:
        forked.append(num_threads)
        fork(address, call, block, num_threads)

    monkeypatch.setattr(team, "_fork", lambda: counted)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    rules = np.stack([rule(at=0.5)] * 16)
    for size, threads in ((16_384, []), (151_936, [2])):
        forked.clear()
        row = np.zeros(size, np.float32)
        assert drawn([row] * 16, rules) == [size // 2] * 16
        assert forked == threads
