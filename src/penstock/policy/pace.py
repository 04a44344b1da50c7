"""How much of a step prompts may have so that the streams that run keep their inter-token target.

In: what is known of the time that steps take, the streams' part of the step, the strictest target; out: tokens.
Pure.  Prompts are never starved: a step takes a few of their tokens even where the streams alone fill it.
"""

from __future__ import annotations

from penstock.policy.step_time import StepModel, StepShape

LEAST_CHUNK = 8
"""Prompt tokens of a step whatever the target: the slowest that a prompt can be."""
_MARGIN = 2.0
"""How many usual mispredictions a step is planned to stay below its target."""
_GROWTH = 2
"""A step's prefill is at most so many times the largest one whose time was seen: nobody knows what lies beyond."""


class Pace:
    """One step's time, while it is shared out.  ``decodes`` is the shape of the step without prompts."""

    def __init__(self, model: StepModel, decodes: StepShape, target_s: float) -> None:
        self._model = model
        self._left_s = _planned_s(model, target_s) - model.seconds(decodes)
        self._taken = 0

    @property
    def most_tokens(self) -> int:
        """Prompt tokens of the step, by what was seen so far."""
        return max(LEAST_CHUNK, _GROWTH * self._model.largest_prefill)

    def tokens_from(self, start: int) -> int:
        """Tokens of a prompt from position ``start`` on that the step still has time for."""
        return max(self._model.prefill_within(self._left_s, start), LEAST_CHUNK - self._taken, 0)

    @property
    def decode_rows(self) -> int:
        """Further rows, like those of decodes, that the step still has time for."""
        row_s = self._model.rates[1]
        return int(max(0.0, self._left_s) / row_s) if row_s > 0 else 0

    def take(self, start: int, count: int) -> None:
        """``count`` tokens from position ``start`` on were given."""
        self._taken += count
        self._left_s -= self._model.seconds_of_prefill(start, count)


def in_reach(model: StepModel, target_s: float) -> bool:
    """Whether a stream that runs alone keeps the target; if not, nothing is gained by running fewer."""
    return model.seconds(StepShape(1, 0)) <= target_s


def keeps_target(model: StepModel, target_s: float, num_decodes: int, context_tokens: int) -> bool:
    """Whether so many streams, once all of them decode, keep the target beside the least chunk of a prompt."""
    shape = StepShape(num_decodes, context_tokens).and_prefill(0, LEAST_CHUNK)
    return model.seconds(shape) <= _planned_s(model, target_s)


def _planned_s(model: StepModel, target_s: float) -> float:
    return target_s / (1 + _MARGIN * model.spread)
