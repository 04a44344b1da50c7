"""What steps took, and what is learned from it.

In: plans, and the seconds that they took; out: the model of the steps' time that policies go by.
Has no clock: time is what the steps took.
"""

from __future__ import annotations

from penstock.engine.sequence import StepPlan, StepResult
from penstock.engine.speculation import Speculation
from penstock.policy.step_time import StepModel, StepShape, learn

_LEARN_FROM = 8
"""Of the steps without prompts every eighth is learned from: they are alike, and the shortest ones."""
_AT_FIRST = 32
"""From so many steps all is learned, as proposals are made by what is known."""


class StepTimes:
    """``now_s``: the engine's time, seconds that its steps took so far.

    ``model``: of all steps, with what lies between the executor's calls.  ``computing``: without that, of steps that
    only decode and propose nothing; so it is the same however many of these are one call.
    """

    def __init__(self, speculation: Speculation | None) -> None:
        self.model = StepModel()
        self.computing = StepModel()
        self.now_s = 0.0
        self._speculation = speculation

    def took(self, plan: StepPlan, result: StepResult) -> None:
        """A step took so long, and accepted so many proposed tokens."""
        self.now_s += result.seconds
        seconds = result.seconds / result.num_rounds
        if seconds <= 0:
            return
        has_prompts = plan.num_streams < len(plan.sequences)
        speculation = self._speculation
        if speculation is not None:
            if has_prompts:
                speculation.interrupted()
            else:
                speculation.took(plan, result, self.model, _shape(plan))
        is_turn = plan.step % _LEARN_FROM == 0
        if not has_prompts and not plan.num_proposed and (is_turn or self.computing.num_steps < _AT_FIRST):
            computing_s = (result.seconds - result.between_s) / result.num_rounds
            self.computing = learn(self.computing, _shape(plan), computing_s)
        is_young = speculation is not None and self.model.num_steps < _AT_FIRST
        if has_prompts or is_young or is_turn:
            shape = _shape(plan)
            # A proposed token has a row like a decode's, with logits, and reads the keys that its sequence's reads.
            shape = shape._replace(num_decodes=shape.num_decodes + plan.num_proposed)
            self.model = learn(self.model, shape, max(seconds - result.draft_s, 0.0))


def _shape(plan: StepPlan) -> StepShape:
    """The step's decodes, without what these propose, and its prompts."""
    num_streams = plan.num_streams
    shape = StepShape(num_streams, sum(plan.starts[:num_streams]) + num_streams)
    for start, count in zip(plan.starts[num_streams:], plan.counts[num_streams:], strict=True):
        shape = shape.and_prefill(start, count)
    return shape
