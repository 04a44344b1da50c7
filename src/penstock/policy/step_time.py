"""How long this machine's next step takes, learned while it runs: seconds from what a step computes.

In: shapes of steps and what they took, one at a time; out: a model that predicts, and says how much prefill a bound on
the seconds leaves room for.  Pure; persisted nowhere.  Recursive least squares as a Kalman filter over five rates that
drift: what is no longer seen is not forgotten, and a stall counts for little.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

Five = tuple[float, float, float, float, float]

_UNKNOWN: Five = (1.0, 1e-2, 1.0, 1e-2, 1.0)
"""Variances of the rates before anything was seen, and never more: looser than any machine is slow."""
_DRIFT = 5e-3
"""How far a rate may move in a step, as a share of itself: a change of the machine is learned in some tens of steps."""
_NOISE = 0.05
"""A step's own scatter, as a share of what it takes."""
_CLIP = 3.0
"""A residual counts for no more than so many times the one to be expected."""
_SPREAD_WEIGHT = 0.05
_KILO = 1024.0


class StepShape(NamedTuple):
    """What a step computes: decode rows and the tokens that they see, prefill tokens and the pairs that they see."""

    num_decodes: int
    context_tokens: int
    prefill_tokens: int = 0
    prefill_pairs: float = 0.0

    def and_prefill(self, start: int, count: int) -> StepShape:
        """With ``count`` more prefill tokens of a sequence, from position ``start`` on."""
        pairs = self.prefill_pairs + count * (start + count / 2)
        return self._replace(prefill_tokens=self.prefill_tokens + count, prefill_pairs=pairs)


class StepModel(msgspec.Struct, frozen=True):
    """What is believed of the machine.

    ``rates``: seconds per step, decode row, 1,024 tokens that those see, prefill token, 1,024 pairs of those.
    ``covariance`` of the rates, row by row.  ``spread``: by what share of its time a step is usually mispredicted.
    ``largest_prefill``: tokens of the largest one seen.  Before the first step the rates are 0, and nothing is ruled
    out.
    """

    rates: Five = (0.0, 0.0, 0.0, 0.0, 0.0)
    covariance: tuple[Five, ...] = (
        (_UNKNOWN[0], 0.0, 0.0, 0.0, 0.0),
        (0.0, _UNKNOWN[1], 0.0, 0.0, 0.0),
        (0.0, 0.0, _UNKNOWN[2], 0.0, 0.0),
        (0.0, 0.0, 0.0, _UNKNOWN[3], 0.0),
        (0.0, 0.0, 0.0, 0.0, _UNKNOWN[4]),
    )
    spread: float = _NOISE
    num_steps: int = 0
    largest_prefill: int = 0

    def seconds(self, shape: StepShape) -> float:
        """What a step of this shape is predicted to take."""
        return _dot(self.rates, _values(shape))

    def seconds_of_prefill(self, start: int, count: int) -> float:
        """What ``count`` prefill tokens from position ``start`` on add to a step."""
        return self.rates[3] * count + self.rates[4] * count * (start + count / 2) / _KILO

    def prefill_within(self, seconds: float, start: int) -> int:
        """The most prefill tokens from position ``start`` on that add no more than ``seconds`` to a step."""
        if seconds <= 0:
            return 0
        per_token = self.rates[3] + self.rates[4] * start / _KILO
        per_square = self.rates[4] / _KILO / 2
        # The quadratic formula without a difference: per_square may be as good as nothing.
        inverse = (per_token + math.sqrt(per_token * per_token + 4 * per_square * seconds)) / (2 * seconds)
        return int(1 / inverse) if inverse > 1e-9 else 1_000_000_000


def learn(model: StepModel, shape: StepShape, seconds: float) -> StepModel:
    """The model after one more step."""
    values = _values(shape)
    covariance = [list(row) for row in model.covariance]
    for i, rate in enumerate(model.rates):
        covariance[i][i] = min(covariance[i][i] + (_DRIFT * rate) ** 2, _UNKNOWN[i])
    leaning = _five([_dot(row, values) for row in covariance])
    unsure = _dot(leaning, values)
    predicted = _dot(model.rates, values)
    residual = seconds - predicted
    spread = model.spread
    if model.num_steps:
        spread += _SPREAD_WEIGHT * (abs(residual) / max(seconds, predicted, 1e-9) - spread)
    # A residual counts for what may be expected of it: while little is known much, and a stall later on little.
    limit = _CLIP * math.sqrt(unsure + max(model.spread * predicted, 1e-6) ** 2)
    residual = max(-limit, min(limit, residual))
    total = unsure + (_NOISE * max(seconds, 1e-6)) ** 2
    l0, l1, l2, l3, l4 = (lean / total for lean in leaning)
    updated: tuple[Five, ...] = tuple(
        (a - lean * l0, b - lean * l1, c - lean * l2, d - lean * l3, e - lean * l4)
        for (a, b, c, d, e), lean in zip(covariance, leaning, strict=True)
    )
    rates = [rate + lean * residual / total for rate, lean in zip(model.rates, leaning, strict=True)]
    return StepModel(
        _not_negative(rates, updated),
        updated,
        spread,
        model.num_steps + 1,
        max(model.largest_prefill, shape.prefill_tokens),
    )


def _not_negative(rates: list[float], covariance: tuple[Five, ...]) -> Five:
    """Nothing takes less than no time.  What a rate is lifted by, the others take back as they are correlated with it.

    The projection of a constrained Kalman filter (Simon and Chia, 2002); without it, rates that are always seen
    together drift apart without end.
    """
    for _ in range(2 * len(rates)):
        least = min(range(len(rates)), key=rates.__getitem__)
        below = rates[least]
        if below >= 0 or covariance[least][least] <= 0:
            break
        row = covariance[least]
        rates = [rate - below * value / row[least] for rate, value in zip(rates, row, strict=True)]
        rates[least] = 0.0
    return _five([max(rate, 0.0) for rate in rates])


def _values(shape: StepShape) -> Five:
    num_decodes, context_tokens, prefill_tokens, prefill_pairs = shape
    return 1.0, num_decodes, context_tokens / _KILO, prefill_tokens, prefill_pairs / _KILO


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    a, b, c, d, e = one
    f, g, h, i, j = other
    return a * f + b * g + c * h + d * i + e * j


def _five(values: list[float]) -> Five:
    a, b, c, d, e = values
    return a, b, c, d, e
