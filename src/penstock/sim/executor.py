"""An executor that computes nothing and takes the time a real one would.

In: step plans; out: pseudo-random tokens that depend on (seed, position) only, after advancing the virtual clock.
"""

from __future__ import annotations

from penstock.cost.time import StepTime
from penstock.engine.sequence import Sequence, StepPlan, StepResult
from penstock.sim.clock import VirtualClock

_MIX = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


class SimulatedExecutor:
    """Implements :class:`penstock.engine.sequence.Executor` over a :class:`~penstock.cost.time.StepTime`."""

    def __init__(self, clock: VirtualClock, step_time: StepTime, vocab_size: int = 32000) -> None:
        self._clock = clock
        self._step_time = step_time
        self._vocab_size = vocab_size

    def execute(self, plan: StepPlan) -> StepResult:
        num_kv_tokens = sum(plan.starts) + sum(plan.counts)
        seconds = self._step_time.seconds(plan.num_tokens, num_kv_tokens)
        self._clock.advance(seconds)
        token_ids = [
            self._draw(sequence) if start + count == sequence.num_tokens else None
            for sequence, start, count in zip(plan.sequences, plan.starts, plan.counts, strict=True)
        ]
        nothing: list[None] = [None] * len(token_ids)
        return StepResult(
            step=plan.step, token_ids=token_ids, scores=nothing, prompt_scores=[[] for _ in token_ids], seconds=seconds
        )

    def _draw(self, sequence: Sequence) -> int:
        mixed = ((sequence.sampling.seed + 1) * _MIX + sequence.num_tokens * 0xBF58476D1CE4E5B9) & _MASK
        return ((mixed ^ (mixed >> 29)) * _MIX & _MASK) % self._vocab_size
