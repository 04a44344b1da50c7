"""Weights in floating point to four bits, group by group of inputs.

In: rows as numpy arrays, finite; out: numbers, scales and zero points.  One pass, where tensor operations take ten.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from penstock.models.kept import kept

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@kept(njit(nogil=True, cache=True, error_model="numpy", fastmath={"nnan", "nsz", "reassoc", "contract"}))
def quantise_groups(rows: Floats, values: Bytes, scales: Floats, zeros: Bytes) -> None:
    """rows[R, I] to values[R, I] of 0 .. 15, scales and zeros [R, G], for groups of I / G inputs.

    Zero is always among the numbers, so that what is filled up with zeros stays so; a group too small to divide by is
    all zeros.
    """
    num_rows, num_groups = scales.shape
    group = rows.shape[1] // num_groups
    for row in range(num_rows):
        for nth in range(num_groups):
            first = nth * group
            low = high = np.float32(0.0)
            for i in range(first, first + group):
                low = min(low, rows[row, i])
                high = max(high, rows[row, i])
            scale = (high - low) / np.float32(15.0)
            factor = np.float32(1.0) / scale if scale > np.float32(1e-30) else np.float32(0.0)
            zero = np.floor(np.float32(0.5) - low * factor)
            scales[row, nth] = scale
            zeros[row, nth] = np.uint8(zero)
            above = zero + np.float32(0.5)
            for i in range(first, first + group):
                number = np.int32(rows[row, i] * factor + above)
                values[row, i] = np.uint8(min(max(number, np.int32(0)), np.int32(15)))
