"""When requests arrive.  In: a rate and a seed; out: non-decreasing seconds since the start, without end.

Pure: no clock.  Open loop: the times never depend on how fast the server answers.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator

from penstock.wire.errors import Problem


def poisson(rate_per_s: float, seed: int) -> Iterator[float]:
    """A Poisson process: exponential gaps with mean ``1 / rate_per_s``, the first one before the first arrival.

    An infinite rate means all at once, at second 0.  Raises ``invalid_setting`` for a rate that is not positive.
    """
    if not rate_per_s > 0:
        raise Problem("invalid_setting", f"The rate is {rate_per_s}; give a positive number or inf.", param="rate")
    if math.isinf(rate_per_s):
        return itertools.repeat(0.0)
    dice = random.Random(f"{seed}/arrivals")
    return itertools.accumulate(dice.expovariate(rate_per_s) for _ in itertools.count())
