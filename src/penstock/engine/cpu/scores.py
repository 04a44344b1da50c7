"""Log-probabilities of tokens, as the model gave them: before temperature, penalties and masks.

In: logits and the tokens that were taken; out: scores in float32's precision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.engine.sequence import TokenScore


def score(logits: Tensor, token_ids: list[int], num_top: int) -> list[TokenScore]:
    """Natural log-probabilities of token_ids[R] under logits [R, V] float32, and of each row's ``num_top`` best."""
    norms = logits.logsumexp(dim=-1, keepdim=True)
    taken = (logits.gather(1, torch.tensor(token_ids)[:, None]) - norms)[:, 0].tolist()
    if not num_top:
        return [TokenScore(token_id, logprob, []) for token_id, logprob in zip(token_ids, taken, strict=True)]
    best = logits.topk(min(num_top, logits.shape[1]), dim=-1)
    tops = zip(best.indices.tolist(), (best.values - norms).tolist(), strict=True)
    return [
        TokenScore(token_id, logprob, list(zip(ids, logprobs, strict=True)))
        for token_id, logprob, (ids, logprobs) in zip(token_ids, taken, tops, strict=True)
    ]
