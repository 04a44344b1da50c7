"""From logits to the next token of each row.

In: logits and sequences; out: token ids.  A row's token depends on its logits, its sequence and (seed, position),
never on the rows beside it.  A greedy row without penalties costs its share of one arg max and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from penstock.engine.cpu.defaults import Rules, SamplingDefaults
from penstock.engine.cpu.draw import draw, uniform
from penstock.engine.sequence import Sequence
from penstock.models.fast.best import best_tokens


class Sampler:
    """Resolves what a request left open from the model's ``defaults``."""

    def __init__(self, defaults: SamplingDefaults) -> None:
        self._defaults = defaults
        self._known: list[Sequence] = []
        self._rules: list[Rules] = []
        self._plain: list[bool] = []
        self._are_plain = False

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> list[int]:
        """One token id per row of logits [R, V] float32, which it leaves as they are."""
        if self.is_plain(sequences):
            return arg_max(logits)
        rules = self._rules
        masks = [None if sequence.constraint is None else sequence.constraint.mask() for sequence in sequences]
        adjusted = [
            mask is not None or _needs_adjusting(rule, sequence)
            for rule, sequence, mask in zip(rules, sequences, masks, strict=True)
        ]
        plain = [row for row, rule in enumerate(rules) if rule.greedy and not adjusted[row]]
        token_ids = [0] * len(sequences)
        if plain:
            chosen = arg_max(logits if len(plain) == len(sequences) else logits[plain])
            for row, token_id in zip(plain, chosen, strict=True):
                token_ids[row] = token_id
        for row, (rule, sequence) in enumerate(zip(rules, sequences, strict=True)):
            if rule.greedy and not adjusted[row]:
                continue
            own = _adjust(logits[row], rule, sequence) if adjusted[row] else logits[row]
            if (mask := masks[row]) is not None:
                own = _constrain(own, logits[row], mask)
            token_ids[row] = _taken(own, rule, sequence.num_tokens)
        return token_ids

    def is_plain(self, sequences: list[Sequence]) -> bool:
        """Whether all of them take their best tokens, whatever these are."""
        if sequences != self._known:
            self._learn(sequences)
        return self._are_plain

    def verify(
        self, logits: Tensor, sequences: list[Sequence], proposals: list[list[int]], known_best: Tensor | None = None
    ) -> list[list[int]]:
        """Tokens of sequences that may have proposals: one, and one more behind each proposed token that was right.

        ``known_best``: the best token of each row, where somebody has found it and all sequences are plain.
        Sequence i has ``1 + len(proposals[i])`` rows of ``logits``, one behind the other: its last token's, and those
        of its proposal.  What is sampled does not depend on what was proposed: each token is the one that
        :meth:`sample` would give after those before it, so a wrong one costs time and changes nothing.
        """
        if sequences != self._known:
            self._learn(sequences)
        best: list[int] = [] if known_best is None else known_best.tolist()
        if not any(proposals):
            return [[token_id] for token_id in best or self.sample(logits, sequences)]
        if any(self._plain):
            best = best or arg_max(logits)
        sampled, first = [], 0
        for rule, plain, sequence, proposal in zip(self._rules, self._plain, sequences, proposals, strict=True):
            token_ids: list[int] = []
            constraint = sequence.constraint
            masks = [None] * (1 + len(proposal)) if constraint is None else constraint.masks(proposal)
            for row, mask in zip(range(first, first + 1 + len(proposal)), masks, strict=False):
                token_ids.append(best[row] if plain else _after(logits[row], rule, sequence, token_ids, mask))
                if token_ids != proposal[: len(token_ids)]:
                    break
            sampled.append(token_ids)
            first += 1 + len(proposal)
        return sampled

    def ahead(self, logits: Tensor, sequences: list[Sequence], proposed: list[list[int]]) -> list[int]:
        """A token of each row of logits [R, V], behind the sequence's own tokens and those ``proposed`` to follow."""
        if self.is_plain(sequences):
            return arg_max(logits)
        rows = zip(logits, self._rules, sequences, proposed, strict=True)
        return [_after(row, rule, sequence, own, None) for row, rule, sequence, own in rows]

    def _learn(self, sequences: list[Sequence]) -> None:
        """What holds for as long as the same sequences are sampled, step after step."""
        known = dict(zip(self._known, self._rules, strict=True))
        self._known = list(sequences)
        self._rules = [known.get(sequence) or self._defaults.resolve(sequence.sampling) for sequence in sequences]
        self._plain = [
            rule.greedy and not rule.penalised and sequence.constraint is None and not _bars_stops(sequence)
            for rule, sequence in zip(self._rules, sequences, strict=True)
        ]
        self._are_plain = all(self._plain)


def arg_max(logits: Tensor) -> list[int]:
    """The first best token of each row of logits [R, V]."""
    token_ids: list[int] = best_tokens(logits).tolist()
    return token_ids


def _after(logits: Tensor, rule: Rules, sequence: Sequence, proposed: list[int], mask: bytes | None) -> int:
    """The token behind the sequence's own and these ``proposed`` ones, from its row of logits [V] under ``mask``."""
    own = logits
    if _needs_adjusting(rule, sequence, len(proposed)):
        own = _adjust(logits, rule, sequence, proposed)
    if mask is not None:
        own = _constrain(own, logits, mask)
    return _taken(own, rule, sequence.num_tokens + len(proposed))


def _taken(logits: Tensor, rules: Rules, position: int) -> int:
    return arg_max(logits[None])[0] if rules.greedy else draw(logits, rules, uniform(rules.seed, position))


def _needs_adjusting(rules: Rules, sequence: Sequence, num_proposed: int = 0) -> bool:
    if rules.penalised:
        return True
    return _bars_stops(sequence) and sequence.num_output_tokens + num_proposed < sequence.min_tokens


def _bars_stops(sequence: Sequence) -> bool:
    """Whether stop tokens are barred at first."""
    return sequence.min_tokens > 0 and bool(sequence.stop_token_ids)


def _constrain(adjusted: Tensor, logits: Tensor, mask: bytes) -> Tensor:
    """``adjusted`` [V] with every token barred that ``mask`` does not allow.

    Where all that it allows is barred already (stop tokens before ``min_tokens``), the constraint counts for more.
    """
    bits = np.unpackbits(np.frombuffer(mask, np.uint8), count=len(logits), bitorder="little")
    barred = torch.from_numpy(bits == 0)
    constrained = adjusted.masked_fill(barred, -torch.inf)
    if constrained.max() == -torch.inf:
        constrained = logits.masked_fill(barred, -torch.inf)
    return constrained


def _adjust(logits: Tensor, rules: Rules, sequence: Sequence, proposed: Items[int] = ()) -> Tensor:
    """A copy of logits [V] with penalties and biases added, and stop tokens barred before ``min_tokens``.

    ``proposed`` tokens are taken to follow the sequence's own.
    The repetition penalty (arXiv 1909.05858) looks at prompt and output, presence and frequency at the output alone,
    as OpenAI defines them.
    """
    logits = logits.clone()
    if rules.repetition_penalty != 1.0:
        seen = torch.tensor([*sequence.token_ids, *proposed])
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / rules.repetition_penalty, values * rules.repetition_penalty)
    output = [*sequence.token_ids[sequence.num_prompt_tokens :], *proposed]
    if output and (rules.presence_penalty or rules.frequency_penalty):
        tokens, counts = torch.unique(torch.tensor(output), return_counts=True)
        logits[tokens] -= rules.presence_penalty + rules.frequency_penalty * counts
    for token_id, bias in rules.logit_bias.items():
        # An id that the model does not have cannot be drawn, so a bias on it changes nothing.
        if 0 <= token_id < len(logits):
            logits[token_id] += bias
    if len(output) < sequence.min_tokens:
        barred = [token_id for token_id in sequence.stop_token_ids if 0 <= token_id < len(logits)]
        logits[barred] = -torch.inf
    return logits
