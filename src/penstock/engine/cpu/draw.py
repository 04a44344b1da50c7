"""One token drawn from one row of logits.

In: logits, rules and a number in [0, 1); out: a token id.  Pure: the same three give the same token.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from penstock.engine.cpu.defaults import Rules

_MASK = (1 << 64) - 1
_BUCKET_BITS = 15
"""Of a float32's 32: what is left tells sign, exponent and eight bits behind it."""


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that depends on (seed, position) alone, 53 bits of it; any integers will do.

    Two rounds of splitmix64's finaliser (Steele, Lea, Flood 2014): a counter-based generator has no state that
    preemption, resumption or another batch could bring out of step.
    """
    return (_mix(_mix(seed & _MASK) + position & _MASK) >> 11) * 2.0**-53


def draw(logits: Tensor, rules: Rules, at: float) -> int:
    """Invert the distribution function over the tokens that temperature, top-k, top-p and min-p leave, at ``at``.

    The filters apply in that order, tokens count in vocabulary order.  Ties at top-k's edge all stay; at top-p's edge
    lower ids go first.  Logits that are not finite at their peak, a broken model's, give the arg max: the other
    sequences of the step must not fail with this one.
    """
    peak, best = logits.max(dim=-1)
    if not math.isfinite(peak):
        return int(best)
    weights = ((logits - peak) / rules.temperature).exp_()
    token_ids: Tensor | None = None
    if 0 < rules.top_k < len(weights):
        edge = weights.topk(rules.top_k).values[-1]
        token_ids = (weights >= edge).nonzero()[:, 0]
        weights = weights[token_ids]
    if rules.top_p < 1.0:
        kept = _nucleus(weights, rules.top_p)
        token_ids = kept if token_ids is None else token_ids[kept]
        weights = weights[kept]
    if rules.min_p > 0.0:
        # The best token's weight is exactly 1, so min_p is its own threshold; the best token always stays.
        kept = (weights >= min(rules.min_p, 1.0)).nonzero()[:, 0]
        token_ids = kept if token_ids is None else token_ids[kept]
        weights = weights[kept]
    index = _invert(weights, at)
    return index if token_ids is None else int(token_ids[index])


def _nucleus(weights: Tensor, top_p: float) -> Tensor:
    """Indices, rising, of the smallest set of largest weights that holds ``top_p`` of the whole (arXiv 1904.09751).

    Nothing is sorted but the few weights at the set's edge: a positive float's leading bits put it into a bucket of
    its neighbours, and the buckets' sums tell in which of them the edge lies.
    """
    values = weights.numpy()
    buckets = values.view(np.int32) >> _BUCKET_BITS
    sums = np.bincount(buckets, weights=values)
    above = np.cumsum(sums[::-1])[::-1]
    wanted = top_p * float(above[0])
    edge = max(0, int(np.count_nonzero(above >= wanted)) - 1)
    candidates = np.flatnonzero(buckets == edge)
    order = candidates[np.argsort(-values[candidates], kind="stable")]
    before = above[edge] - sums[edge] + np.cumsum(values[order], dtype=np.float64) - values[order]
    largest = edge == len(sums) - 1
    num_kept = max(int(largest), int(np.count_nonzero(before < wanted)))
    kept = buckets > edge
    kept[order[:num_kept]] = True
    return torch.from_numpy(np.flatnonzero(kept))


def _invert(weights: Tensor, at: float) -> int:
    cumulative = weights.cumsum(0, dtype=torch.float64)
    total = cumulative[-1]
    index = int(torch.searchsorted(cumulative, at * total, right=True))
    # at * total may round up to the total; the last token with any weight is where that is first reached.
    return min(index, int(torch.searchsorted(cumulative, total)))


def _mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & _MASK
    return x ^ (x >> 31)
