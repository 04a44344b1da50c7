"""Proposals of a draft model: a small one of the same vocabulary that runs ahead of the large one.

In: a step plan with drafts; out: tokens for the large model to verify.  Blocking; reads sequences and writes none.
Its keys and values lie in pages of its own under the block ids of the sequences, so whoever owns blocks owns both; what
it lacks of a sequence it computes first.  What it gets wrong costs time and changes no answer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from penstock.cost.memory import LOGITS_ROWS
from penstock.engine.cpu.batch import step_batch
from penstock.engine.cpu.forward import Forward
from penstock.engine.cpu.sampler import Sampler
from penstock.engine.sequence import StepPlan
from penstock.models.fast.step import StepOutputs


class Drafter:
    """Proposals for the decodes of a step: each sequence's next tokens, one forward of the draft model for each depth.

    A token is sampled by the sequence's own rules and the number of its position, as the large model's will be: where
    the two distributions agree the two tokens do.
    """

    def __init__(self, forward: Forward, sampler: Sampler, vocab_size: int, block_tokens: int) -> None:
        """``forward``: the draft model; ``vocab_size``: the large one's."""
        self._forward = forward
        self._sampler = sampler
        self._vocab_size = vocab_size
        self._block_tokens = block_tokens

    def propose(self, plan: StepPlan) -> dict[int, list[int]]:
        """``num_proposed`` tokens for each of the plan's drafts; those without only catch up."""
        proposals: dict[int, list[int]] = {i: [] for i in plan.drafts}
        rounds = max(draft.num_proposed for draft in plan.drafts.values())
        self._propose(plan, proposals, {i: (draft.start, draft.num_rows) for i, draft in plan.drafts.items()}, 0)
        for depth in range(1, rounds):
            rows = {
                i: (plan.sequences[i].num_tokens + depth - 1, 1)
                for i, draft in plan.drafts.items()
                if draft.num_proposed > depth
            }
            self._propose(plan, proposals, rows, depth)
        return {i: own for i, own in proposals.items() if own}

    def _propose(
        self, plan: StepPlan, proposals: dict[int, list[int]], rows: dict[int, tuple[int, int]], depth: int
    ) -> None:
        """Compute (start, count) of each, and have those propose a token that are to."""
        sequences = [plan.sequences[i] for i in rows]
        part = StepPlan(
            step=plan.step,
            sequences=sequences,
            starts=[start for start, _ in rows.values()],
            counts=[count for _, count in rows.values()],
            epochs=[0] * len(rows),
            num_decodes=len(rows) if depth else 0,
            proposals={place: proposals[i][-1:] for place, i in enumerate(rows)} if depth else {},
        )
        # Adapters are made for the large model.
        batch = replace(step_batch(part, self._block_tokens), adapted=[])
        # A vocabulary may have been padded: what the draft model has no row for it does not know.
        batch.token_ids.clamp_(max=self._forward.decoder.config.vocab_size - 1)
        due = [place for place, i in enumerate(rows) if plan.drafts[i].num_proposed]
        last = [batch.offsets[place] + part.counts[place] - 1 for place in due]
        outputs = self._forward.compute(batch, last[:LOGITS_ROWS], False)
        indices = list(rows)
        for begin in range(0, len(due), LOGITS_ROWS):
            places = due[begin : begin + LOGITS_ROWS]
            logits = self._logits(outputs, last, begin)
            own = [proposals[indices[place]] for place in places]
            sampled = self._sampler.ahead(logits, [sequences[place] for place in places], own)
            for proposal, token_id in zip(own, sampled, strict=True):
                proposal.append(token_id)

    def _logits(self, outputs: StepOutputs, rows: list[int], begin: int) -> Tensor:
        logits = outputs.logits
        if begin or logits is None:
            logits = self._forward.decoder.logits(outputs.hidden[torch.tensor(rows[begin : begin + LOGITS_ROWS])])
        return logits[:, : self._vocab_size]
