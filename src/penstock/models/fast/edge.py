"""The least weight that a filter leaves, found without sorting.

In: weights and how much is to be left of them, by number or by mass; out: the weight at the edge.
One pass tells between which two powers of two the edge lies; what lies between them is halved by its bits until all
that is left is equal, so that no distribution takes long.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penstock.models.fast.compiled import compiled
from penstock.models.fast.draw_parts import STEPS, counts, masses, pick
from penstock.models.fast.row_parts import as_float
from penstock.models.fast.simd import LANES

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

CHUNK_GROUPS = 16
"""Registers of weights with a sum in common: where that is less than a weight, none of them is as much."""
CHUNK = CHUNK_GROUPS * LANES
_CHUNK_BYTES = 4 * CHUNK
_NUM_STEPS = len(STEPS)
_BORDERS = np.array((np.inf, *STEPS, np.finfo(np.float32).tiny), np.float32)


@compiled
def edge(weights: Floats, sums: Doubles, wanted: float, by_mass: bool, found: Floats) -> tuple[np.float32, float, int]:
    """The largest weight down to which there is ``wanted``; how much is above it, and how many weights are equal to it.

    weights [16 * G] float32, 0 .. 1; sums of 16 groups each, float64.  What there is of them is their sum or number.
    ``found`` [16 * (G + 1)] is spare room.  The weight is 0 where there are no others.
    """
    totals = np.zeros(_NUM_STEPS + 1, np.float64)
    at, to = weights.ctypes.data, totals[1:].ctypes.data
    for chunk in range(len(sums)):
        if sums[chunk] >= _BORDERS[_NUM_STEPS]:
            if by_mass:
                masses(at + chunk * _CHUNK_BYTES, _num_groups(weights, chunk), to)
            else:
                counts(at + chunk * _CHUNK_BYTES, _num_groups(weights, chunk), to)
    border = 1
    while border <= _NUM_STEPS and totals[border] < wanted:
        border += 1
    least, below, num_found = _BORDERS[border], _BORDERS[border - 1], 0
    for chunk in range(len(sums)):
        if sums[chunk] >= least:
            to = found.ctypes.data + 4 * num_found
            num_found += pick(at + chunk * _CHUNK_BYTES, least, below, to, _num_groups(weights, chunk))
    return _narrowed(found, num_found, totals[border - 1], wanted, by_mass)


@compiled
def _num_groups(weights: Floats, chunk: int) -> int:
    return min(CHUNK_GROUPS, len(weights) // LANES - chunk * CHUNK_GROUPS)


@compiled
def _narrowed(
    found: Floats, num_found: int, above: float, wanted: float, by_mass: bool
) -> tuple[np.float32, float, int]:
    """The edge among the first ``num_found`` of ``found``, where ``above`` is what lies above all of them."""
    bits = found.view(np.int32)
    while num_found:
        least = most = bits[0]
        for i in range(num_found):
            least, most = min(least, bits[i]), max(most, bits[i])
        if least == most:
            return found[0], above, num_found
        middle = as_float((np.int64(least) + np.int64(most) + 1) // 2)
        measure = 0.0
        for i in range(num_found):
            if found[i] >= middle:
                measure += np.float64(found[i]) if by_mass else 1.0
        low, high = middle, np.float32(np.inf)
        if above + measure < wanted:
            above += measure
            low, high = np.float32(0.0), middle
        found[num_found : num_found + LANES] = np.float32(-1.0)  # belongs to neither half
        at, groups = found.ctypes.data, (num_found + LANES - 1) // LANES
        num_found = pick(at, low, high, at, groups)
    return np.float32(0.0), above, 0
