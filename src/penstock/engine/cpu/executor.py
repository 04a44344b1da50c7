"""The executor on CPU: one step plan through the decoder, by its plan where it has one, else op by op.

In: a step plan; out: sampled tokens, and the scores and embeddings that were asked for.
Blocking; called from one thread at a time.  Reads sequences and never writes them; owns the KV pages.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from penstock.cost.memory import LOGITS_ROWS
from penstock.engine.cpu.batch import StepBatch, sampled_rows, scored_rows, step_batch
from penstock.engine.cpu.decodes import Decodes
from penstock.engine.cpu.defaults import SamplingDefaults
from penstock.engine.cpu.drafter import Drafter
from penstock.engine.cpu.fast_attention import make_attention
from penstock.engine.cpu.forward import Forward, MakeAttention, StepAttention
from penstock.engine.cpu.planned import PlannedStep
from penstock.engine.cpu.pooling import pool
from penstock.engine.cpu.sampler import Sampler
from penstock.engine.cpu.scores import score
from penstock.engine.sequence import StepPlan, StepResult, TokenScore
from penstock.models.decoder import Decoder
from penstock.models.fast.step import StepOutputs

Drawn = tuple[int, TokenScore | None]
"""A sampled token and its score."""
Part = list[tuple[int, range]]
"""Sequences by index, and the rows that they sample from."""


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
        draft: Decoder | None = None,
    ) -> None:
        """``dtype`` is that of keys and values; ``attention`` replaces the fastest one of this machine.

        ``draft`` makes the proposals of plans with drafts; its keys and values are int8 where those are.
        Raises ``insufficient_memory`` when the pages cannot be had.
        """
        self._decoder = decoder
        self._block_tokens = block_tokens
        self._sampler = Sampler(sampling_defaults)
        pages = partial(Forward, num_blocks=num_blocks, block_tokens=block_tokens, attention=attention)
        self._forward = pages(decoder, dtype=dtype)
        planned = self._forward.planned
        self._decodes = None if planned is None else Decodes(planned, self._sampler, block_tokens)
        self._drafter: Drafter | None = None
        if draft is not None:
            ahead = pages(draft, dtype=dtype if dtype == torch.int8 else draft.config.torch_dtype)
            self._drafter = Drafter(ahead, Sampler(sampling_defaults), decoder.config.vocab_size, block_tokens)

    @property
    def attention(self) -> StepAttention:
        """What attends in each step, and keeps the pages."""
        return self._forward.attention

    @property
    def planned(self) -> PlannedStep | None:
        """What computes steps in one compiled call, where the decoder is plain enough for that."""
        return self._forward.planned

    def execute(self, plan: StepPlan) -> StepResult:
        """Compute every planned token's keys and values; sample where a sequence's end is reached."""
        begin = time.perf_counter()
        with torch.inference_mode():
            if plan.drafts:
                assert self._drafter is not None
                plan = dataclasses.replace(plan, proposals=self._drafter.propose(plan))
            draft_s = time.perf_counter() - begin if plan.drafts else 0.0
            decoded = None if self._decodes is None else self._decodes.execute(plan)
            if decoded is not None:
                return _only_tokens(plan, decoded, time.perf_counter() - begin)
            batch = step_batch(plan, self._block_tokens)
            parts = list(_parts(sampled_rows(plan, batch)))
            best = self._sampler.is_plain([plan.sequences[i] for part in parts for i, _ in part])
            outputs = self._forward.compute(batch, _rows(parts[0]) if parts else [], best)
            hidden = outputs.hidden
            drawn = self._sample(plan, parts, outputs)
            prompt_scores = self._score_prompts(plan, batch, hidden)
            pooled = pool(plan, batch.offsets, hidden)
        return StepResult(
            step=plan.step,
            token_ids=[own[0][0] if own else None for own in drawn],
            scores=[own[0][1] if own else None for own in drawn],
            prompt_scores=prompt_scores,
            pooled=pooled,
            further={i: drawn[i][1:] for i in plan.proposals},
            seconds=time.perf_counter() - begin,
            draft_s=draft_s,
        )

    def _sample(self, plan: StepPlan, parts: list[Part], outputs: StepOutputs) -> list[list[Drawn]]:
        """What each sequence gets, in order: nothing where no token is due, more where proposals were right."""
        drawn: list[list[Drawn]] = [[] for _ in plan.sequences]
        for number, part in enumerate(parts):
            if number == 0 and outputs.logits is not None:
                logits, best = outputs.logits, outputs.best
            else:
                logits, best = self._decoder.logits(outputs.hidden[_rows(part)]), None
            proposals = [plan.proposals.get(i, []) for i, _ in part]
            sampled = self._sampler.verify(logits, [plan.sequences[i] for i, _ in part], proposals, best)
            first = 0
            for (i, rows), token_ids in zip(part, sampled, strict=True):
                num_top = plan.sequences[i].num_logprobs
                if num_top is None:
                    drawn[i] = [(token_id, None) for token_id in token_ids]
                else:
                    scores = self._score(logits[first : first + len(token_ids)], token_ids, num_top)
                    drawn[i] = list(zip(token_ids, scores, strict=True))
                first += len(rows)
        return drawn

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


def _only_tokens(plan: StepPlan, rounds: list[list[int]], seconds: float) -> StepResult:
    """Of a plan whose sequences all decode and want no scores."""
    num = len(plan.sequences)
    first, *later = rounds
    return StepResult(plan.step, first, [None] * num, [[]] * num, seconds=seconds, later=later)


def _rows(part: Part) -> list[int]:
    return [row for _, rows in part for row in rows]


def _parts(due: Part) -> Iterator[Part]:
    """In order, cut where their logits would be too many to hold at a time."""
    part: Part = []
    num_rows = 0
    for i, rows in due:
        if part and num_rows + len(rows) > LOGITS_ROWS:
            yield part
            part, num_rows = [], 0
        part.append((i, rows))
        num_rows += len(rows)
    if part:
        yield part
