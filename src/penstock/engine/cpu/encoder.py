"""The executor of an encoder: whole prompts, packed into one ragged batch, each to one vector.

In: a step plan of pooled sequences; out: their vectors.  Blocking; called from one thread at a time.
Keeps nothing between steps: there is no KV memory, and no prompt is computed in parts.
"""

from __future__ import annotations

import time
from itertools import accumulate, chain

import torch

from penstock.engine.cpu.pooling import pool
from penstock.engine.sequence import StepPlan, StepResult
from penstock.models.encoder import Encoder


class EncoderExecutor:
    """Implements :class:`penstock.engine.sequence.Executor` for an encoder whose weights are in memory."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute every planned prompt; one that is planned in parts or without a pooling is our own bug."""
        begin = time.perf_counter()
        num_sequences = len(plan.sequences)
        for i, sequence in enumerate(plan.sequences):
            assert plan.starts[i] == 0 and plan.reaches_end(i) and sequence.pooling is not None
        by_length = sorted(range(num_sequences), key=plan.counts.__getitem__)
        lengths = [plan.counts[i] for i in by_length]
        starts = accumulate(lengths, initial=0)
        offsets = [start for _, start in sorted(zip(by_length, starts, strict=False))]
        with torch.inference_mode():
            token_ids = torch.tensor(list(chain.from_iterable(plan.sequences[i].token_ids for i in by_length)))
            hidden = self._encoder(token_ids, lengths)
            pooled = pool(plan, offsets, hidden)
        return StepResult(
            step=plan.step,
            token_ids=[None] * num_sequences,
            scores=[None] * num_sequences,
            prompt_scores=[[] for _ in plan.sequences],
            pooled=pooled,
            seconds=time.perf_counter() - begin,
        )
