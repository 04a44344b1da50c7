"""RMSNorm of one row (arXiv 1910.07467), as jobs share it.

In: addresses of float32, a multiple of 16 of them; out: the row normalised in its place, or what it is multiplied by.
"""

from __future__ import annotations

import numpy as np

from penstock.models.fast.compiled import compiled
from penstock.models.fast.row_parts import scaled, squares


@compiled
def inverse_root(total: np.float32, size: int, eps: np.float32) -> np.float32:
    """One over the root of the mean of ``size`` squares that sum to ``total``, and of ``eps``."""
    root: np.float32 = np.sqrt(total / np.float32(size) + eps)
    return np.float32(1.0) / root


@compiled
def normalise(values: int, weight: int, size: int, eps: np.float32) -> None:
    """RMSNorm of ``size`` float32 in their place."""
    scaled(values, weight, inverse_root(squares(values, size // 16), size, eps), values, size // 16)
