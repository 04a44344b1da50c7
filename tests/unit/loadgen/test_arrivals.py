"""When requests arrive."""

from __future__ import annotations

import itertools
import math

import pytest

from penstock.loadgen.arrivals import poisson
from penstock.wire.errors import Problem


def _first(count: int, rate: float, seed: int = 0) -> list[float]:
    return list(itertools.islice(poisson(rate, seed), count))


def test_rate_is_met_and_gaps_are_exponential() -> None:
    """A Poisson process has its rate, and gaps whose deviation equals their mean."""
    times = _first(20_000, 5.0)
    gaps = [b - a for a, b in itertools.pairwise([0.0, *times])]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert mean == pytest.approx(0.2, rel=0.03)
    assert deviation == pytest.approx(mean, rel=0.03)
    assert min(gaps) >= 0


def test_same_seed_same_arrivals() -> None:
    """The seed decides the arrivals, and nothing else does."""
    assert _first(50, 3.0, seed=7) == _first(50, 3.0, seed=7) != _first(50, 3.0, seed=8)


def test_infinite_rate_is_all_at_once() -> None:
    """An infinite rate schedules everything at second 0."""
    assert _first(3, math.inf) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan])
def test_a_rate_has_to_be_positive(rate: float) -> None:
    """Zero, negative and not-a-number rates are refused by name."""
    with pytest.raises(Problem) as caught:
        poisson(rate, 0)
    assert (caught.value.code, caught.value.param) == ("invalid_setting", "rate")
