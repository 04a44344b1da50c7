"""Tokens drawn from rows of logits, in a few passes over them and without sorting.

In: where rows of float32 lie, and the rules of each; out: token ids.  Every filter comes down to a least weight.
A row is one thread's and its sums have one order, so its token depends on the row and its rules alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import carray

from penstock.models.fast.compiled import compiled
from penstock.models.fast.draw_parts import cut, weigh
from penstock.models.fast.edge import CHUNK, CHUNK_GROUPS, edge
from penstock.models.fast.row_parts import arg_max, doubles_at, floats_at, ints_at
from penstock.models.fast.simd import LANES
from penstock.models.fast.team import NUM_ITEMS, Job, take

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

INVERSE_TEMPERATURE, TOP_K, TOP_P, MIN_P, AT = range(5)
"""Columns of rules, float64.  INVERSE_TEMPERATURE 0: the best token; TOP_K 0, TOP_P 1 and MIN_P 0 leave all tokens."""
NUM_RULES = 5

_LOGITS_A_THREAD = 1 << 19
"""As many take some 0.3 ms; for fewer, no further thread is waited for, which a neighbour may keep from its core."""

_ROWS, _RULES, _SIZE, _SPARE, _SPARE_BYTES, _NUM_TAKEN, _TOKENS = range(2, 9)


class Drawer:
    """Keeps the room that drawing takes.  Not to be called by two threads at a time."""

    def __init__(self) -> None:
        self._spare = np.empty((0, 0), np.uint8)
        self._num_taken = np.zeros(1, np.int64)

    def tokens(self, rows: Ints, rules: Doubles, size: int) -> list[int]:
        """One token of each row: addresses [R] of ``size`` float32 each, and their rules [R, NUM_RULES].

        Temperature, top-k, top-p and min-p are applied in that order; then the distribution function is inverted at AT,
        a number in [0, 1), over tokens in the order of their ids.  Ties at top-k's edge all stay; at top-p's edge lower
        ids go first.  A row whose peak is not finite gives its best token, or 0 where it holds no number.
        """
        tokens = np.empty(len(rows), np.int64)
        shape = torch.get_num_threads(), _spare_bytes(size)
        if self._spare.shape != shape:
            self._spare = np.empty(shape, np.uint8)
        self._num_taken[0] = 0
        spare = self._spare.ctypes.data, shape[1], self._num_taken.ctypes.data
        arguments = rows.ctypes.data, rules.ctypes.data, size, *spare, tokens.ctypes.data
        draw_job.run(len(rows), *arguments, most_threads=max(1, len(rows) * size // _LOGITS_A_THREAD))
        drawn: list[int] = tokens.tolist()
        return drawn


def _spare_bytes(size: int) -> int:
    """A thread's: weights, as much room and a register more for those that are looked at, and sums."""
    num_groups = -(-size // LANES)
    return 4 * LANES * (2 * num_groups + 1) + 8 * -(-num_groups // CHUNK_GROUPS)


@compiled
def _drawn(address: int, size: int, rules: Doubles, spare: int) -> int:
    logits = carray(floats_at(address), (size,))
    best = _best(address, logits)
    if rules[INVERSE_TEMPERATURE] == 0.0 or not math.isfinite(logits[best]):
        return best
    num_groups = (size + LANES - 1) // LANES
    weights = carray(floats_at(spare), (LANES * num_groups,))
    found = carray(floats_at(spare + 4 * LANES * num_groups), (LANES * (num_groups + 1),))
    sums_at = spare + 4 * LANES * (2 * num_groups + 1)
    sums = carray(doubles_at(sums_at), ((num_groups + CHUNK_GROUPS - 1) // CHUNK_GROUPS,))
    _weigh(address, logits, logits[best], np.float32(rules[INVERSE_TEMPERATURE]), weights, sums, found)
    if 0 < rules[TOP_K] < size:
        least, _, _ = edge(weights, sums, rules[TOP_K], False, found)
        _cut(weights, sums, least)
    if rules[TOP_P] < 1.0:
        wanted = rules[TOP_P] * sums.sum()
        least, above, num_equal = edge(weights, sums, wanted, True, found)
        _cut(weights, sums, least)
        num_wanted = (wanted - above) / least
        # Compared before it is a whole number: of a least weight of nothing, or of next to nothing, it is too large.
        if num_wanted <= num_equal - 1:
            _drop_equals(weights, sums, least, max(1, math.ceil(num_wanted)))
    if rules[MIN_P] > 0.0:
        # The best token's weight is exactly 1, so min_p is its own threshold; the best token always stays.
        _cut(weights, sums, np.float32(min(rules[MIN_P], 1.0)))
    return _inverted(weights, sums, rules[AT])


@compiled
def _best(address: int, logits: Floats) -> int:
    """The first of the largest logits; NaN is none of them."""
    whole = len(logits) // LANES
    best: int = arg_max(address, whole)
    peak = logits[best]
    if np.isnan(peak):
        peak = np.float32(-np.inf)
    for i in range(whole * LANES, len(logits)):
        if logits[i] > peak:
            best, peak = i, logits[i]
    return best


@compiled
def _weigh(
    address: int, logits: Floats, peak: np.float32, factor: np.float32, weights: Floats, sums: Doubles, spare: Floats
) -> None:
    """All weights, and their sums by chunks; behind the last token there are zeros."""
    whole, to = len(logits) // LANES, weights.ctypes.data
    for chunk in range(len(sums)):
        groups = min(CHUNK_GROUPS, whole - chunk * CHUNK_GROUPS)
        sums[chunk] = weigh(address + 4 * CHUNK * chunk, peak, factor, to + 4 * CHUNK * chunk, groups)
    rest = len(logits) - LANES * whole
    if rest:
        spare[:rest], spare[rest:LANES] = logits[LANES * whole :], np.float32(-np.inf)
        sums[-1] += weigh(spare.ctypes.data, peak, factor, to + 4 * LANES * whole, 1)


@compiled
def _cut(weights: Floats, sums: Doubles, least: np.float32) -> None:
    """What weighs less is gone; in chunks where that is all, by their sums alone."""
    for chunk in range(len(sums)):
        if sums[chunk] >= least:
            groups = min(CHUNK_GROUPS, len(weights) // LANES - chunk * CHUNK_GROUPS)
            sums[chunk] = cut(weights.ctypes.data + 4 * CHUNK * chunk, least, groups)
        else:
            sums[chunk] = 0.0


@compiled
def _drop_equals(weights: Floats, sums: Doubles, weight: np.float32, num_kept: int) -> None:
    """Of the least weights that are left keep the first ``num_kept``."""
    num_met = 0
    for chunk in range(len(sums)):
        if sums[chunk] >= weight:
            for i in range(CHUNK * chunk, min(CHUNK * (chunk + 1), len(weights))):
                if weights[i] == weight:
                    num_met += 1
                    if num_met > num_kept:
                        weights[i] = 0.0
    _cut(weights, sums, weight)


@compiled
def _inverted(weights: Floats, sums: Doubles, at: float) -> int:
    """The first token whose weight and those before it are more than this share of all."""
    last = len(sums) - 1
    while sums[last] == 0.0:
        last -= 1
    target, before, chunk = at * sums.sum(), 0.0, 0
    while chunk < last and before + sums[chunk] <= target:
        before += sums[chunk]
        chunk += 1
    token = 0
    for i in range(CHUNK * chunk, min(CHUNK * (chunk + 1), len(weights))):
        if weights[i] > 0.0:
            # Rounding may leave the target out of reach: then it is the last one with any weight.
            token = i
            before += weights[i]
            if before > target:
                break
    return token


def _draw(job: Any) -> None:
    spare = job[_SPARE] + job[_SPARE_BYTES] * take(ints_at(job[_NUM_TAKEN]))
    rows, tokens = ints_at(job[_ROWS]), ints_at(job[_TOKENS])
    row = take(job)
    while row < job[NUM_ITEMS]:
        rules = carray(doubles_at(job[_RULES] + 8 * NUM_RULES * row), (NUM_RULES,))
        tokens[row] = _drawn(rows[row], job[_SIZE], rules, spare)
        row = take(job)


draw_job = Job(_draw)
