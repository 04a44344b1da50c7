"""Log-probabilities of tokens, as the model gave them: before temperature, penalties and masks.

In: logits, the tokens that were taken, and the model's way from one to the other; out: scores in float32's precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from penstock.engine.sequence import TokenScore

LogProbabilities = Callable[[Tensor, Tensor], Tensor]
"""``Decoder.log_probabilities``: (logits[R, V], token_ids[R, K]) -> [R, K]."""


def score(logits: Tensor, token_ids: list[int], num_top: int, log_probabilities: LogProbabilities) -> list[TokenScore]:
    """Log-probabilities of token_ids[R] under logits [R, V] float32, and of each row's ``num_top`` best."""
    taken = torch.tensor(token_ids)[:, None]
    best = logits.topk(min(num_top, logits.shape[1]), dim=-1).indices
    rows = log_probabilities(logits, torch.cat((taken, best), dim=1)).tolist()
    return [
        TokenScore(token_id, row[0], list(zip(top, row[1:], strict=True)))
        for token_id, row, top in zip(token_ids, rows, best.tolist(), strict=True)
    ]
