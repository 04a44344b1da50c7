"""The executor on CPU: one step plan through the decoder, by its plan where it has one, else op by op.

In: a step plan; out: sampled tokens, and the scores and embeddings that were asked for.
Blocking; called from one thread at a time.  Reads sequences and never writes them; owns the KV pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from penstock.cost.memory import LOGITS_ROWS
from penstock.engine.cpu.batch import StepBatch, sampled_rows, scored_rows, step_batch
from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.fast_attention import make_attention
from penstock.engine.cpu.pages import PageShape
from penstock.engine.cpu.planned import planned_step
from penstock.engine.cpu.pooling import pool
from penstock.engine.cpu.sampler import Sampler
from penstock.engine.cpu.scores import score
from penstock.engine.sequence import Sequence, StepPlan, StepResult, TokenScore
from penstock.models.attention import Attend
from penstock.models.decoder import Decoder
from penstock.models.fast.step import StepOutputs

StepAttention = Callable[[StepBatch], Attend]
"""Makes one step's attention; whoever made it keeps the pages."""
MakeAttention = Callable[[PageShape, Collection[int | None]], StepAttention]
"""Allocates pages for layers with these windows.  Raises ``insufficient_memory``."""


class CpuExecutor:
    """Implements :class:`penstock.engine.sequence.Executor` for a decoder whose weights are in memory."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        sampling_defaults: SamplingDefaults,
        attention: MakeAttention = make_attention,
    ) -> None:
        """``dtype`` is that of keys and values; ``attention`` replaces the fastest one of this machine.

        Raises ``insufficient_memory`` when the pages cannot be had.
        """
        config = decoder.config
        self._decoder = decoder
        self._block_tokens = block_tokens
        self._sampler = Sampler(sampling_defaults)
        shape = PageShape(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=dtype,
        )
        self.attention = attention(shape, {layer.window for layer in config.layers})
        self._planned = planned_step(decoder, self.attention)

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute every planned token's keys and values; sample where a sequence's end is reached."""
        begin = time.perf_counter()
        with torch.inference_mode():
            batch = step_batch(plan, self._block_tokens)
            due, rows = sampled_rows(plan, batch)
            outputs = self._compute(batch, rows, [plan.sequences[i] for i in due])
            hidden = outputs.hidden
            token_ids, scores = self._sample(plan, due, rows, outputs)
            prompt_scores = self._score_prompts(plan, batch, hidden)
            pooled = pool(plan, batch.offsets, hidden)
        return StepResult(
            step=plan.step,
            token_ids=token_ids,
            scores=scores,
            prompt_scores=prompt_scores,
            pooled=pooled,
            seconds=time.perf_counter() - begin,
        )

    def _compute(self, batch: StepBatch, rows: list[int], sequences: list[Sequence]) -> StepOutputs:
        if self._planned is not None:
            return self._planned.compute(batch, rows, self._sampler.is_plain(sequences))
        return StepOutputs(self._decoder(batch.token_ids, batch.positions, self.attention(batch)))

    def _sample(
        self, plan: StepPlan, due: list[int], rows: list[int], outputs: StepOutputs
    ) -> tuple[list[int | None], list[TokenScore | None]]:
        token_ids: list[int | None] = [None] * len(plan.sequences)
        scores: list[TokenScore | None] = [None] * len(plan.sequences)
        for begin in range(0, len(due), LOGITS_ROWS):
            part = due[begin : begin + LOGITS_ROWS]
            sequences = [plan.sequences[i] for i in part]
            if begin == 0 and outputs.logits is not None:
                logits, best = outputs.logits, outputs.best
            else:
                logits, best = self._decoder.logits(outputs.hidden[rows[begin : begin + LOGITS_ROWS]]), None
            sampled = self._sampler.sample(logits, sequences) if best is None else best.tolist()
            for row, (i, token_id) in enumerate(zip(part, sampled, strict=True)):
                token_ids[i] = token_id
                num_top = plan.sequences[i].num_logprobs
                if num_top is not None:
                    scores[i] = self._score(logits[row : row + 1], [token_id], num_top)[0]
        return token_ids, scores

    def _score_prompts(self, plan: StepPlan, batch: StepBatch, hidden: Tensor) -> list[list[TokenScore]]:
        prompt_scores: list[list[TokenScore]] = [[] for _ in plan.sequences]
        for i, sequence in enumerate(plan.sequences):
            start, offset = plan.starts[i], batch.offsets[i]
            num_rows = scored_rows(sequence, start, plan.counts[i])
            for begin in range(0, num_rows, LOGITS_ROWS):
                end = min(begin + LOGITS_ROWS, num_rows)
                logits = self._decoder.logits(hidden[offset + begin : offset + end])
                token_ids = sequence.token_ids[start + begin + 1 : start + end + 1]
                prompt_scores[i].extend(self._score(logits, token_ids, sequence.num_logprobs or 0))
        return prompt_scores

    def _score(self, logits: Tensor, token_ids: list[int], num_top: int) -> list[TokenScore]:
        return score(logits, token_ids, num_top, self._decoder.log_probabilities)
