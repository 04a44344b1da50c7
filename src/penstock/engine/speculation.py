"""What sequences propose, and what becomes of it.

In: decoding sequences, verified proposals, steps' times; out: offers for ``policy.speculate``, and what to verify.
Deterministic and without I/O: knows no tensors, no blocks and no clock.  What is proposed changes how fast a sequence
gets its tokens, never which.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from penstock.engine.lookup import Lookup
from penstock.engine.sequence import Draft, Sequence, StepPlan, StepResult
from penstock.policy.speculate import (
    Acceptance,
    Allowance,
    Offer,
    chance,
    drafted,
    rested,
    rows_to_catch_up,
    settled,
)
from penstock.policy.step_time import StepModel, StepShape

_MOST_IN_VAIN = 4
"""A sequence whose offers came to nothing is asked again after so many steps at most: asking takes time, too."""
_KINDS = 4
"""Of proposals by look-up, by the length of the agreement; a draft model's are all of the first."""
_LACKS = 16
"""Tokens that a draft model may lack of a sequence and still guess: it computes them with the first guess."""


@dataclass(slots=True)
class _Guesser:
    """One sequence's: what it proposes now, and how its proposals of each kind fared.

    ``num_drafted`` of its tokens have keys and values of the draft model, in the blocks that it has since ``epoch``.
    """

    lookup: Lookup = field(default_factory=Lookup)
    own: list[Acceptance] = field(default_factory=lambda: [Acceptance()] * _KINDS)
    token_ids: list[int] = field(default_factory=list)
    kind: int = 0
    in_vain: int = 0
    pause: int = 0
    num_drafted: int = 0
    epoch: int = 0


class Speculation:
    """Proposals for all sequences of an engine, by prompt look-up or by a draft model."""

    def __init__(self, most_tokens: int, *, drafts: bool = False) -> None:
        """``most_tokens``: of one proposal."""
        self.allowance = Allowance()
        self._most_tokens = most_tokens
        self._drafts = drafts
        self._known = [Acceptance()] * _KINDS
        self._guessers: dict[str, _Guesser] = {}

    def offers(self, sequences: Items[Sequence]) -> list[Offer | None]:
        """What each of these, which decode, could propose; ``None``: nothing, or not now."""
        if self.allowance.seconds <= 0:
            return [None] * len(sequences)
        return [self._offer(sequence) for sequence in sequences]

    def fill(self, plan: StepPlan, num_guessing: int, model: StepModel) -> None:
        """Write into a plan what is proposed for the ``num_guessing`` sequences behind its decodes."""
        guessing = range(plan.num_decodes, plan.num_decodes + num_guessing)
        plan.num_guesses = {i: plan.counts[i] - 1 for i in guessing}
        if not self._drafts:
            plan.proposals = {i: self._guessers[plan.sequences[i].id].token_ids[: plan.counts[i] - 1] for i in guessing}
            return
        drafts = {}
        for i in guessing:
            sequence = plan.sequences[i]
            start = self._guesser(sequence).num_drafted
            drafts[i] = Draft(start, sequence.num_tokens - start, plan.counts[i] - 1)
        plan.drafts = drafts or self._catching_up(plan, model)

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        """Of so many tokens proposed behind its last one so many were right, up to the first wrong one."""
        guesser = self._guessers[sequence.id]
        kind = guesser.kind
        guesser.own[kind] = guesser.own[kind].after(proposed, accepted)
        self._known[kind] = self._known[kind].after(proposed, accepted, of_many=True)
        # The last guess went through the target alone.
        guesser.num_drafted = sequence.num_tokens + min(accepted, proposed - 1)
        if accepted:
            guesser.in_vain = guesser.pause = 0

    def rested(self, seconds: float) -> None:
        """A step of decodes alone, without proposals, took so long."""
        self.allowance = rested(self.allowance, seconds)

    def settled(
        self, plan: StepPlan, result: StepResult, model: StepModel, decodes: StepShape, plain: StepShape
    ) -> None:
        """A step guessed, or the draft model caught up: see ``policy.speculate``."""
        if plan.drafts:
            num_rows = sum(draft.num_rows for draft in plan.drafts.values())
            self.allowance = drafted(self.allowance, plan.num_proposed, num_rows, result.draft_s)
        seconds, accepted = result.seconds, result.num_accepted
        self.allowance = settled(self.allowance, model, decodes, plain, accepted, seconds, result.draft_s)
        for i, draft in plan.drafts.items():
            guesser = self._guessers.get(plan.sequences[i].id)
            if not draft.num_guesses and guesser is not None and guesser.epoch == plan.epochs[i]:
                guesser.num_drafted = draft.start + draft.num_rows

    def forget(self, sequence: Sequence) -> None:
        """It ended."""
        self._guessers.pop(sequence.id, None)

    def _offer(self, sequence: Sequence) -> Offer | None:
        if sequence.constraint is not None:  # its masks are known for one position at a time
            return None
        guesser = self._guesser(sequence)
        if guesser.pause:
            guesser.pause -= 1
            return None
        # The token behind the last proposed one is the sequence's, too.
        most = min(self._most_tokens, sequence.max_tokens - sequence.num_output_tokens - 1)
        if most <= 0:
            return None
        if self._drafts:
            if sequence.num_tokens - guesser.num_drafted > _LACKS:
                return None
            return Offer(chance(guesser.own[0], self._known[0]), most)
        guesser.in_vain = min(guesser.in_vain + 1, _MOST_IN_VAIN)
        guesser.pause = guesser.in_vain - 1
        match = guesser.lookup.find(sequence.token_ids, most)
        if match is None:
            return None
        guesser.token_ids = match.token_ids
        guesser.kind = min(match.length.bit_length(), _KINDS + 1) - 2
        return Offer(chance(guesser.own[guesser.kind], self._known[guesser.kind]), len(match.token_ids))

    def _catching_up(self, plan: StepPlan, model: StepModel) -> dict[int, Draft]:
        """The first decode of which the draft model lacks too much to guess, if it is worth it."""
        for i, sequence in enumerate(plan.sequences[: plan.num_decodes]):
            start = self._guesser(sequence).num_drafted
            lacking = sequence.num_tokens - start
            left = sequence.max_tokens - sequence.num_output_tokens
            if sequence.constraint is None and lacking > _LACKS and left > _LACKS:
                num_rows = rows_to_catch_up(lacking, self._known[0], model, self.allowance)
                return {i: Draft(start, num_rows, 0)} if num_rows else {}
        return {}

    def _guesser(self, sequence: Sequence) -> _Guesser:
        guesser = self._guessers.get(sequence.id)
        if guesser is None:
            guesser = self._guessers[sequence.id] = _Guesser()
        if guesser.epoch != sequence.epoch:
            guesser.epoch, guesser.num_drafted = sequence.epoch, 0
        return guesser
