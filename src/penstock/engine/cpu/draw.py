"""What the next token of a row is drawn by: numbers that stand for a request's rules, and one of chance.

In: rules, seeds and positions; out: arrays for ``models.fast.draw``.  Pure: the same give the same.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from penstock.engine.cpu.defaults import Rules
from penstock.models.fast.draw import INVERSE_TEMPERATURE, MIN_P, NUM_RULES, TOP_K, TOP_P, Doubles, Ints

Seeds = npt.NDArray[np.uint64]

_MASK = (1 << 64) - 1


def table(rules: Iterable[Rules]) -> Doubles:
    """[S, NUM_RULES]: a row for each of the rules, but for the number that it is drawn at."""
    rules = list(rules)
    found = np.zeros((len(rules), NUM_RULES))
    for row, rule in zip(found, rules, strict=True):
        row[INVERSE_TEMPERATURE] = 0.0 if rule.greedy else 1.0 / rule.temperature
        row[TOP_K], row[TOP_P], row[MIN_P] = min(rule.top_k, 1 << 53), rule.top_p, rule.min_p
    return found


def seeds(numbers: Iterable[int]) -> Seeds:
    """Any integers, as :func:`uniforms` takes them."""
    return _mixed(np.array([number & _MASK for number in numbers], np.uint64))


def uniforms(seeds: Seeds, positions: Ints) -> Doubles:
    """Numbers [R] in [0, 1) that depend on (seed, position) alone, 53 bits of each.

    Two rounds of splitmix64's finaliser (Steele, Lea, Flood 2014): a counter-based generator has no state that
    preemption, resumption or another batch could bring out of step.
    """
    return (_mixed(seeds + positions.astype(np.uint64)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mixed(x: Seeds) -> Seeds:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
