"""What sequences propose, and what becomes of it.

In: decoding sequences, verified proposals, steps' times; out: offers for ``policy.speculate`` and their tokens.
Deterministic and without I/O: knows no tensors, no blocks and no clock.  What is proposed changes how fast a sequence
gets its tokens, never which.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass, field

from penstock.engine.lookup import Lookup
from penstock.engine.sequence import Sequence
from penstock.policy.speculate import Acceptance, Allowance, Offer, chance, rested, settled
from penstock.policy.step_time import StepModel, StepShape

_MOST_IN_VAIN = 4
"""A sequence whose offers came to nothing is asked again after so many steps at most: asking takes time, too."""
_KINDS = 4


@dataclass(slots=True)
class _Guesser:
    """One sequence's: what it proposes now, and how its proposals of each kind fared."""

    lookup: Lookup = field(default_factory=Lookup)
    own: list[Acceptance] = field(default_factory=lambda: [Acceptance()] * _KINDS)
    token_ids: list[int] = field(default_factory=list)
    kind: int = 0
    in_vain: int = 0
    pause: int = 0


class Speculation:
    """Proposals by prompt look-up for all sequences of an engine."""

    def __init__(self, most_tokens: int) -> None:
        """``most_tokens``: of one proposal."""
        self.allowance = Allowance()
        self._most_tokens = most_tokens
        self._known = [Acceptance()] * _KINDS
        self._guessers: dict[str, _Guesser] = {}

    def offers(self, sequences: Items[Sequence]) -> list[Offer | None]:
        """What each of these, which decode, could propose; ``None``: nothing, or not now."""
        if self.allowance.seconds <= 0:
            return [None] * len(sequences)
        return [self._offer(sequence) for sequence in sequences]

    def proposal(self, sequence: Sequence, count: int) -> list[int]:
        """The first ``count`` tokens of what it offered."""
        return self._guessers[sequence.id].token_ids[:count]

    def verified(self, sequence: Sequence, proposed: int, accepted: int) -> None:
        """Of so many proposed tokens so many were right, up to the first wrong one."""
        guesser = self._guessers[sequence.id]
        kind = guesser.kind
        guesser.own[kind] = guesser.own[kind].after(proposed, accepted)
        self._known[kind] = self._known[kind].after(proposed, accepted, of_many=True)
        if accepted:
            guesser.in_vain = guesser.pause = 0

    def rested(self, seconds: float) -> None:
        """A step of decodes alone, without proposals, took so long."""
        self.allowance = rested(self.allowance, seconds)

    def settled(self, model: StepModel, decodes: StepShape, plain: StepShape, accepted: int, seconds: float) -> None:
        """A step with proposals took so long: see ``policy.speculate``."""
        self.allowance = settled(self.allowance, model, decodes, plain, accepted, seconds)

    def forget(self, sequence: Sequence) -> None:
        """It ended."""
        self._guessers.pop(sequence.id, None)

    def _offer(self, sequence: Sequence) -> Offer | None:
        if sequence.constraint is not None:  # its masks are known for one position at a time
            return None
        guesser = self._guessers.get(sequence.id)
        if guesser is None:
            guesser = self._guessers[sequence.id] = _Guesser()
        if guesser.pause:
            guesser.pause -= 1
            return None
        guesser.in_vain = min(guesser.in_vain + 1, _MOST_IN_VAIN)
        guesser.pause = guesser.in_vain - 1
        # The token behind the last proposed one is the sequence's, too.
        most = min(self._most_tokens, sequence.max_tokens - sequence.num_output_tokens - 1)
        match = guesser.lookup.find(sequence.token_ids, most) if most > 0 else None
        if match is None:
            return None
        guesser.token_ids = match.token_ids
        guesser.kind = min(match.length.bit_length(), _KINDS + 1) - 2
        return Offer(chance(guesser.own[guesser.kind], self._known[guesser.kind]), len(match.token_ids))
