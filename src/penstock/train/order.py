"""Which rows a step trains on: a pure function of seed and step.

In: seed, step, number of rows; out: row numbers.  Nothing is iterated and nothing is remembered, so that a run that
is resumed at step k sees exactly what an undisturbed run sees, and the saved position is one integer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def rows_of_step(seed: int, step: int, *, num_rows: int, rows_per_step: int) -> NDArray[np.int64]:
    """``rows_per_step`` row numbers.  Every epoch shows each row once, in an order of its own; a step may span two."""
    first = step * rows_per_step
    drawn = np.arange(first, first + rows_per_step)
    epochs, places = np.divmod(drawn, num_rows)
    rows = np.empty(rows_per_step, np.int64)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        rows[here] = np.random.default_rng([seed, epoch]).permutation(num_rows)[places[here]]
    return rows
