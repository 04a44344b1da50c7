"""Reference attention over whole sequences, for training and for checks; nothing is cached.

In: rotated q and k, and v, of one or more sequences laid end to end; out: the mixed values.
A sequence never sees another, and its result does not depend on which others are in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class AttentionSpec:
    """How one layer attends.

    ``scale`` multiplies the products of queries and keys.
    ``window``: a token sees itself and the ``window - 1`` tokens before it; ``None``: all before it.
    ``softcap``: scaled products become ``softcap * tanh(product / softcap)``; ``None``: they stay.
    """

    layer: int
    scale: float
    window: int | None = None
    softcap: float | None = None


Attend = Callable[[AttentionSpec, Tensor, Tensor, Tensor], Tensor]
"""(spec, q[T, Hq, D], k[T, Hkv, D], v[T, Hkv, D]) -> [T, Hq, D]."""


def packed_causal(lengths: Sequence[int]) -> Attend:
    """Causal attention within each of the sequences of ``lengths`` tokens that make up a batch of sum(lengths).

    One call per sequence costs sum(n^2) instead of the square of the sum, and needs no mask.
    """
    sizes = list(lengths)

    def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(torch.split(q, sizes), torch.split(k, sizes), torch.split(v, sizes), strict=True)
        return torch.cat([causal(*part) for part in parts])

    return attend


def packed_positions(lengths: Sequence[int]) -> Tensor:
    """Positions [sum(lengths)] int64 that begin at 0 in each sequence."""
    return torch.cat([torch.arange(length) for length in lengths])


def causal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sequence whose rows see each other and nothing else: q[T, Hq, D], k and v[T, Hkv, D] -> [T, Hq, D]."""
    grouped = q.shape[1] != k.shape[1]
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    return mixed.squeeze(0).transpose(0, 1)
