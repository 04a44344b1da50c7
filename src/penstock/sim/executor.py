"""An executor that computes nothing and takes the time a real one would.

In: step plans; out: pseudo-random tokens that depend on (seed, position) only, after advancing the virtual clock.
"""

from __future__ import annotations

from penstock.cost.time import StepTime
from penstock.engine.sequence import Sequence, StepPlan, StepResult, TokenScore
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
        seconds = sum(
            self._step_time.seconds(plan.num_tokens, num_kv_tokens + nth * len(plan.sequences))
            for nth in range(plan.rounds)
        )
        self._clock.advance(seconds)
        token_ids = [
            self._draw(sequence, sequence.num_tokens) if plan.reaches_end(i) else None
            for i, sequence in enumerate(plan.sequences)
        ]
        nothing: list[None] = [None] * len(token_ids)
        return StepResult(
            step=plan.step,
            token_ids=token_ids,
            scores=nothing,
            prompt_scores=[[] for _ in token_ids],
            seconds=seconds,
            further={i: self._further(plan.sequences[i], self._proposal(plan, i)) for i in plan.proposed},
            later=[
                [self._draw(sequence, sequence.num_tokens + nth) for sequence in plan.sequences]
                for nth in range(1, plan.rounds)
            ],
        )

    def _proposal(self, plan: StepPlan, i: int) -> list[int]:
        if i in plan.proposals:
            return plan.proposals[i]
        # As a draft model that is right about the first half.
        sequence, count = plan.sequences[i], plan.proposed[i]
        right = [self._draw(sequence, sequence.num_tokens + depth) for depth in range(-(-count // 2))]
        return right + [self._vocab_size] * (count - len(right))

    def _further(self, sequence: Sequence, proposal: list[int]) -> list[tuple[int, TokenScore | None]]:
        position = sequence.num_tokens
        drawn: list[tuple[int, TokenScore | None]] = []
        for proposed in proposal:
            if proposed != self._draw(sequence, position):
                break
            position += 1
            drawn.append((self._draw(sequence, position), None))
        return drawn

    def _draw(self, sequence: Sequence, position: int) -> int:
        mixed = ((sequence.sampling.seed + 1) * _MIX + position * 0xBF58476D1CE4E5B9) & _MASK
        return ((mixed ^ (mixed >> 29)) * _MIX & _MASK) % self._vocab_size
