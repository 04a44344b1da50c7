"""From logits to the next token of each row.

In: logits and sequences; out: token ids.  A row's token depends on its logits, its sequence and (seed, position),
never on the rows beside it.  All rows of a step are one compiled call, which sorts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Items
from itertools import accumulate

import numpy as np
from torch import Tensor

from penstock.engine.cpu.adjust import adjusted, bars_stops
from penstock.engine.cpu.defaults import Rules, SamplingDefaults
from penstock.engine.cpu.draw import seeds, table, uniforms
from penstock.engine.sequence import Sequence
from penstock.models.fast.best import best_tokens
from penstock.models.fast.draw import AT, Drawer


class Sampler:
    """Resolves what a request left open from the model's ``defaults``."""

    def __init__(self, defaults: SamplingDefaults) -> None:
        self._defaults = defaults
        self._drawer = Drawer()
        self._known: list[Sequence] = []
        self._rules: list[Rules] = []
        self._table, self._seeds = table([]), seeds([])
        self._changing: set[int] = set()
        self._are_plain = False

    def sample(self, logits: Tensor, sequences: list[Sequence]) -> list[int]:
        """One token id per row of logits [R, V] float32, which it leaves as they are."""
        if self.is_plain(sequences):
            return arg_max(logits)
        masks = {i: constraint.mask() for i in self._changing if (constraint := sequences[i].constraint) is not None}
        rows = range(len(sequences))
        return self._draw(logits, rows, rows, [()] * len(sequences), masks)

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
        if self._are_plain:
            return _agreed(best or arg_max(logits), proposals)
        return self._verify(logits, proposals)

    def ahead(self, logits: Tensor, sequences: list[Sequence], proposed: list[list[int]]) -> list[int]:
        """A token of each row of logits [R, V], behind the sequence's own tokens and those ``proposed`` to follow."""
        if self.is_plain(sequences):
            return arg_max(logits)
        rows = range(len(sequences))
        return self._draw(logits, rows, rows, proposed, {})

    def _learn(self, sequences: list[Sequence]) -> None:
        """What holds for as long as the same sequences are sampled, step after step."""
        known = dict(zip(self._known, self._rules, strict=True))
        self._known = list(sequences)
        self._rules = [known.get(sequence) or self._defaults.resolve(sequence.sampling) for sequence in sequences]
        self._table, self._seeds = table(self._rules), seeds(rule.seed for rule in self._rules)
        self._changing = {
            i
            for i, (rule, sequence) in enumerate(zip(self._rules, sequences, strict=True))
            if rule.penalised or sequence.constraint is not None or bars_stops(sequence)
        }
        self._are_plain = not self._changing and all(rule.greedy for rule in self._rules)

    def _verify(self, logits: Tensor, proposals: list[list[int]]) -> list[list[int]]:
        """Depth by depth, of those sequences whose proposal was right so far."""
        constrained = [(i, own) for i in self._changing if (own := self._known[i].constraint) is not None]
        masks = {i: constraint.masks(proposals[i]) for i, constraint in constrained}
        first = list(accumulate((1 + len(proposal) for proposal in proposals), initial=0))
        sampled: list[list[int]] = [[] for _ in proposals]
        going, depth = list(range(len(proposals))), 0
        while going:
            of_depth = {i: own[depth] for i, own in masks.items() if depth < len(own)}
            rows, behind = [first[i] + depth for i in going], [sampled[i] for i in going]
            drawn = self._draw(logits, rows, going, behind, of_depth)
            for i, token_id in zip(going, drawn, strict=True):
                sampled[i].append(token_id)
            depth += 1
            going = [
                i for i in going if sampled[i] == proposals[i][:depth] and (i not in masks or depth < len(masks[i]))
            ]
        return sampled

    def _draw(
        self,
        logits: Tensor,
        rows: Items[int],
        whose: Items[int],
        behind: Items[Items[int]],
        masks: Mapping[int, bytes | None],
    ) -> list[int]:
        """One token from each of these rows, which are those of the sequences ``whose``.

        It follows the sequence's own tokens and those ``behind`` them, under the sequence's mask.
        """
        logits = logits if logits.stride(1) == 1 else logits.contiguous()
        addresses = logits.data_ptr() + logits.element_size() * logits.stride(0) * np.array(rows, np.int64)
        positions = [len(self._known[i].token_ids) + len(own) for i, own in zip(whose, behind, strict=True)]
        held = []
        for place, (row, i, own) in enumerate(zip(rows, whose, behind, strict=True)) if self._changing else ():
            if i in self._changing:
                changed = adjusted(logits[row], self._rules[i], self._known[i], own, masks.get(i))
                held.append(changed)
                addresses[place] = changed.data_ptr()
        rules, own_seeds = self._table[list(whose)], self._seeds[list(whose)]
        rules[:, AT] = uniforms(own_seeds, np.array(positions, np.int64))
        return self._drawer.tokens(addresses, rules, logits.shape[1])


def arg_max(logits: Tensor) -> list[int]:
    """The first best token of each row of logits [R, V]."""
    token_ids: list[int] = best_tokens(logits).tolist()
    return token_ids


def _agreed(best: list[int], proposals: list[list[int]]) -> list[list[int]]:
    """Of each sequence's rows the tokens up to the first that is not what was proposed."""
    agreed, first = [], 0
    for proposal in proposals:
        own = best[first : first + 1 + len(proposal)]
        num_right = next((i for i, token_id in enumerate(proposal) if own[i] != token_id), len(proposal))
        agreed.append(own[: num_right + 1])
        first += 1 + len(proposal)
    return agreed
