"""What sequences propose, and what becomes of it.

In: decoding sequences, verified proposals, steps' times; out: candidates for ``policy.speculate``, and what to verify.
Deterministic and without I/O: knows no tensors and no clock, and of blocks their numbers alone.  What is proposed
changes how fast a sequence gets its tokens, never which.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from penstock.engine.lookup import Lookup
from penstock.engine.sequence import Draft, Sequence, StepPlan, StepResult
from penstock.policy.speculate import (
    Acceptance,
    Allowance,
    Candidate,
    chance,
    drafted,
    mix,
    plain,
    rows_to_catch_up,
    speculated,
    speculates,
)
from penstock.policy.step_time import StepModel, StepShape

_MOST_IN_VAIN = 4
"""A sequence that was looked up in vain is looked up again after so many steps at most: looking up takes time, too."""
_LACKS = 16
"""Tokens that a draft model may lack of a sequence and still propose: it computes them with the first of its own."""
_BY_DRAFT = 0
"""The agreement under which a draft model's acceptance is kept; those of look-up are ``lookup.AGREEMENTS``."""
_NOTHING_KNOWN = Acceptance()


@dataclass(slots=True)
class _Proposer:
    """One sequence's: what it proposes now, and how its proposals fared, by how many tokens had agreed.

    ``num_drafted`` of its tokens have keys and values of the draft model, in the blocks that it has since ``epoch``;
    -1: not known yet.
    """

    lookup: Lookup = field(default_factory=Lookup)
    own: dict[int, Acceptance] = field(default_factory=dict)
    token_ids: list[int] = field(default_factory=list)
    agreement: int = _BY_DRAFT
    in_vain: int = 0
    pause: int = 0
    num_drafted: int = -1
    epoch: int = 0


class Speculation:
    """Proposals for all sequences of an engine, by prompt look-up or by a draft model."""

    def __init__(self, most_tokens: int, block_tokens: int, *, drafts: bool = False) -> None:
        """``most_tokens``: of one proposal."""
        self._most_tokens = most_tokens
        self._block_tokens = block_tokens
        self._drafts = drafts
        self._allowances: dict[int, Allowance] = {}
        self._known: dict[int, Acceptance] = {}
        self._proposers: dict[str, _Proposer] = {}
        self._drafted_blocks: set[int] = set()
        """Full blocks whose pages of the draft model hold the keys and values of their tokens, too."""
        self._has_looked = False
        self._was_plain = False

    def allowance(self, num_decodes: int) -> Allowance:
        """What a step of so many decodes may still lose."""
        return self._allowances.get(mix(num_decodes), Allowance())

    def candidates(self, sequences: Items[Sequence]) -> list[Candidate | None]:
        """What each of these, which decode, could propose in the next step; empty: it is to be a plain one."""
        self._has_looked = speculates(self.allowance(len(sequences)))
        return [self._candidate(sequence) for sequence in sequences] if self._has_looked else []

    def fill(self, plan: StepPlan, num_proposing: int) -> bool:
        """Write into a plan what the ``num_proposing`` sequences behind its decodes propose.  False: it is plain."""
        if not self._has_looked:
            return False
        proposing = range(plan.num_decodes, plan.num_decodes + num_proposing)
        plan.proposed = {i: plan.counts[i] - 1 for i in proposing}
        if not self._drafts:
            plan.proposals = {
                i: self._proposers[plan.sequences[i].id].token_ids[: plan.counts[i] - 1] for i in proposing
            }
            for i, proposal in plan.proposals.items():
                if (constraint := plan.sequences[i].constraint) is not None:
                    constraint.foresee(list(proposal))
            return True
        drafts = {}
        for i in proposing:
            sequence = plan.sequences[i]
            start = self._proposer(sequence).num_drafted
            drafts[i] = Draft(start, sequence.num_tokens - start, plan.counts[i] - 1)
        plan.drafts = drafts or self._catching_up(plan)
        return True

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        """Of so many tokens proposed behind its last one so many were accepted, up to the first wrong one."""
        proposer = self._proposers[sequence.id]
        agreement = proposer.agreement
        proposer.own[agreement] = proposer.own.get(agreement, _NOTHING_KNOWN).after(proposed, accepted)
        known = self._known.get(agreement, _NOTHING_KNOWN)
        self._known[agreement] = known.after(proposed, accepted, of_many=True)
        if accepted:
            proposer.in_vain = proposer.pause = 0
        if self._drafts:
            # The last proposed token went through the target alone.
            self._note_drafted(sequence, proposer, sequence.num_tokens + min(accepted, proposed - 1))

    def took(self, plan: StepPlan, result: StepResult, model: StepModel, shape: StepShape) -> None:
        """A step of decodes alone was computed, which without proposals is of this ``shape``."""
        key, allowance = mix(shape.num_decodes), self.allowance(shape.num_decodes)
        if not self._has_looked:
            num_steps = result.num_rounds
            self._allowances[key] = plain(
                allowance, model, shape, result.seconds / num_steps, num_steps, settled=self._was_plain
            )
            self._was_plain = True
            return
        self._has_looked = self._was_plain = False
        if plan.drafts:
            num_rows = sum(draft.num_rows for draft in plan.drafts.values())
            allowance = drafted(allowance, plan.num_proposed, num_rows, result.draft_s)
        self._allowances[key] = speculated(allowance, model, shape, result.seconds, result.num_accepted, result.draft_s)
        for i, draft in plan.drafts.items():
            proposer = self._proposers.get(plan.sequences[i].id)
            if not draft.num_proposed and proposer is not None and proposer.epoch == plan.epochs[i]:
                self._note_drafted(plan.sequences[i], proposer, draft.start + draft.num_rows)

    def interrupted(self) -> None:
        """A step computed prompts or raised: it looked for nothing, and a plain one behind it is not like others."""
        self._has_looked = self._was_plain = False

    def leased(self, block_ids: Iterable[int]) -> None:
        """These blocks are to hold something else than before."""
        self._drafted_blocks.difference_update(block_ids)

    def forget(self, sequence: Sequence) -> None:
        """It ended."""
        self._proposers.pop(sequence.id, None)

    def _candidate(self, sequence: Sequence) -> Candidate | None:
        constraint = sequence.constraint
        if constraint is not None and (self._drafts or not constraint.foresees):
            return None
        proposer = self._proposer(sequence)
        if proposer.pause:
            proposer.pause -= 1
            return None
        # The token behind the last proposed one is the sequence's, too.
        most = min(self._most_tokens, sequence.max_tokens - sequence.num_output_tokens - 1)
        if most <= 0:
            return None
        if self._drafts:
            if sequence.num_tokens - proposer.num_drafted > _LACKS:
                return None
            return Candidate(self._chance(proposer), most)
        proposer.in_vain = min(proposer.in_vain + 1, _MOST_IN_VAIN)
        proposer.pause = proposer.in_vain - 1
        match = proposer.lookup.find(sequence.token_ids, most)
        if match is None:
            return None
        proposer.token_ids, proposer.agreement = match
        return Candidate(self._chance(proposer), len(match.token_ids))

    def _chance(self, proposer: _Proposer) -> float:
        agreement = proposer.agreement
        return chance(proposer.own.get(agreement, _NOTHING_KNOWN), self._known.get(agreement, _NOTHING_KNOWN))

    def _catching_up(self, plan: StepPlan) -> dict[int, Draft]:
        """The first decode of which the draft model lacks too much to propose, as far as that may be lost."""
        for i, sequence in enumerate(plan.sequences[: plan.num_decodes]):
            start = self._proposer(sequence).num_drafted
            lacking = sequence.num_tokens - start
            left = sequence.max_tokens - sequence.num_output_tokens
            if sequence.constraint is None and lacking > _LACKS and left > _LACKS:
                num_rows = rows_to_catch_up(lacking, self.allowance(plan.num_decodes))
                return {i: Draft(start, num_rows, 0)} if num_rows else {}
        return {}

    def _proposer(self, sequence: Sequence) -> _Proposer:
        proposer = self._proposers.get(sequence.id)
        if proposer is None:
            proposer = self._proposers[sequence.id] = _Proposer()
        if self._drafts and (proposer.num_drafted < 0 or proposer.epoch != sequence.epoch):
            # What it shares with others the draft model may have computed for them.
            num_shared = 0
            for block in sequence.block_ids:
                if block not in self._drafted_blocks:
                    break
                num_shared += 1
            proposer.epoch = sequence.epoch
            proposer.num_drafted = min(num_shared * self._block_tokens, sequence.num_tokens - 1)
        return proposer

    def _note_drafted(self, sequence: Sequence, proposer: _Proposer, num_tokens: int) -> None:
        before, proposer.num_drafted = proposer.num_drafted // self._block_tokens, num_tokens
        self._drafted_blocks.update(sequence.block_ids[before : num_tokens // self._block_tokens])
