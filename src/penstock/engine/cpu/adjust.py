"""What a request makes of a row of logits before a token is taken: penalties, biases, barred tokens, a mask.

In: logits and a sequence; out: logits, a copy where they change.  A row depends on its own sequence alone.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import torch
from torch import Tensor

from penstock.engine.cpu.defaults import Rules
from penstock.engine.sequence import Sequence


def adjusted(logits: Tensor, rules: Rules, sequence: Sequence, proposed: Items[int], mask: bytes | None) -> Tensor:
    """The row of logits [V] behind the sequence's own tokens and those ``proposed`` to follow, under ``mask``."""
    own = logits
    if rules.penalised or (bars_stops(sequence) and sequence.num_output_tokens + len(proposed) < sequence.min_tokens):
        own = _adjust(logits, rules, sequence, proposed)
    return own if mask is None else _constrain(own, logits, mask)


def bars_stops(sequence: Sequence) -> bool:
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


def _adjust(logits: Tensor, rules: Rules, sequence: Sequence, proposed: Items[int]) -> Tensor:
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
