"""Steps that only decode, one after another, of the same sequences.

In: step plans; out: the tokens of each.  What such a step needs is made with the first of them; afterwards numbers are
changed in place, and a page number is added where a sequence begins a page.  Several steps may be one call.
Argued in docs/decisions/028-steps-without-python.md.
"""

from __future__ import annotations

import numpy as np

from penstock.cost.memory import LOGITS_ROWS
from penstock.engine.cpu.batch import StepBatch, step_batch
from penstock.engine.cpu.planned import PlannedStep
from penstock.engine.cpu.sampler import Sampler
from penstock.engine.sequence import Sequence, StepPlan
from penstock.models.fast.step import StepOutputs

_SPARE_PAGES = 4
"""Pages that a sequence may begin before all is made anew."""


class Decodes:
    """What is kept from one step to the next; a plan that is none for this is an end of it."""

    def __init__(self, planned: PlannedStep, sampler: Sampler, block_tokens: int) -> None:
        self._planned = planned
        self._sampler = sampler
        self._block_tokens = block_tokens
        self._kept: _Batch | None = None

    def execute(self, plan: StepPlan) -> list[list[int]] | None:
        """The tokens of all sequences, for each of the plan's rounds; ``None``: it is no plan for this."""
        # Not kept meanwhile: what raises half-way leaves nothing behind, and another plan changes what is prepared.
        kept, self._kept = self._kept, None
        if plan.drafts:  # whose time is told apart
            return None
        if kept is not None and kept.is_followed_by(plan):
            kept.advance([sequence.token_ids[-1] for sequence in plan.sequences])
            outputs = self._planned.go_on()
        elif self._suits(plan):
            kept = _Batch(plan, self._block_tokens)
            plain = self._sampler.is_plain(plan.sequences)
            outputs = self._planned.compute(kept.batch, list(range(len(plan.sequences))), plain)
        else:
            return None
        rounds = [self._first(outputs, plan.sequences)]
        while len(rounds) < plan.rounds:
            kept.advance(rounds[-1])
            rounds.append(self._later(self._planned.go_on(), plan.sequences, rounds))
        self._kept = kept
        return rounds

    def _suits(self, plan: StepPlan) -> bool:
        """Whether each sequence gets one token, of which nothing but its number is wanted."""
        if not plan.num_decodes == len(plan.sequences) <= LOGITS_ROWS or not self._planned.has_head:
            return False
        return all(
            sequence.num_logprobs is None
            and sequence.pooling is None
            and not sequence.score_prompt
            and sequence.adapter is None
            for sequence in plan.sequences
        )

    def _first(self, outputs: StepOutputs, sequences: list[Sequence]) -> list[int]:
        if outputs.best is not None:
            best: list[int] = outputs.best.tolist()
            return best
        assert outputs.logits is not None
        return self._sampler.sample(outputs.logits, sequences)

    def _later(self, outputs: StepOutputs, sequences: list[Sequence], rounds: list[list[int]]) -> list[int]:
        """Tokens behind those of the rounds before, which no sequence has yet."""
        if outputs.best is not None:
            best: list[int] = outputs.best.tolist()
            return best
        assert outputs.logits is not None
        return self._sampler.ahead(outputs.logits, sequences, [list(own) for own in zip(*rounds, strict=True)])


class _Batch:
    """A batch of decodes, which :meth:`advance` changes to the next token of each."""

    def __init__(self, plan: StepPlan, block_tokens: int) -> None:
        self.batch: StepBatch = step_batch(plan, block_tokens, _SPARE_PAGES)
        self._sequences = plan.sequences
        self._block_tokens = block_tokens
        self._starts = list(plan.starts)
        num_pages = [-(-(start + 1) // block_tokens) + _SPARE_PAGES for start in self._starts]
        self._last_starts = [count * block_tokens - 1 for count in num_pages]
        batch = self.batch
        self._token_ids, self._positions = batch.token_ids.numpy(), batch.positions.numpy()
        self._pages, self._slots = batch.pages.numpy(), batch.slots.numpy()

    def is_followed_by(self, plan: StepPlan) -> bool:
        """Whether the plan is of the same sequences, each one token later, and there is room for all its rounds."""
        return (
            plan.num_decodes == len(plan.sequences)
            and plan.sequences == self._sequences
            and plan.starts == [start + 1 for start in self._starts]
            and all(start + plan.rounds <= last for start, last in zip(self._starts, self._last_starts, strict=True))
        )

    def advance(self, token_ids: list[int]) -> None:
        """To these tokens, which follow those before."""
        batch, positions = self.batch, self._positions
        self._starts = [start + 1 for start in self._starts]
        self._token_ids[:] = token_ids
        np.add(positions, 1, out=positions)
        batch.spans[:, 2] = positions
        np.remainder(positions, self._block_tokens, out=self._slots)
        if not self._slots.all():
            for i in np.flatnonzero(self._slots == 0).tolist():
                nth = self._starts[i] // self._block_tokens
                page = self._sequences[i].block_ids[nth]
                batch.table[batch.spans[i, 3] + nth] = page
                self._pages[i] = page
