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

from penstock.models.ops import softcap


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
        return torch.cat([causal(spec, *part) for part in parts])

    return attend


def packed_positions(lengths: Sequence[int]) -> Tensor:
    """Positions [sum(lengths)] int64 that begin at 0 in each sequence."""
    return torch.cat([torch.arange(length) for length in lengths])


def causal(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One sequence whose rows see each other and nothing else: q[T, Hq, D], k and v[T, Hkv, D] -> [T, Hq, D]."""
    length = len(q)
    inside = spec.window is None or length <= spec.window
    mask = None if inside else visible(torch.arange(length), torch.arange(length), spec.window)
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return mix(spec, q, k, v, mask).squeeze(0).transpose(0, 1)


def visible(positions: Tensor, key_positions: Tensor, window: int | None) -> Tensor:
    """Whether each of a sequence's ``positions`` [..., T] sees each of ``key_positions`` [..., S]: bool [..., T, S]."""
    distance = positions.unsqueeze(-1) - key_positions.unsqueeze(-2)
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)


def mix(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax attention: q[B, Hq, T, D], k and v[B, Hkv, S, D] -> [B, Hq, T, D].

    ``mask``: what is visible, bool, or what to add to the scores; it must broadcast to [B, Hq, T, S].
    ``None``: T equals S, and a row sees itself and those before it.
    """
    if spec.softcap is None:
        grouped = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=mask is None, scale=spec.scale, enable_gqa=grouped
        )
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    groups = q.shape[1] // k.shape[1]
    # Head by head: the scores of all at once would be the largest tensor of a step.
    return torch.cat(
        [
            _capped(spec, q[:, head * groups : (head + 1) * groups], k[:, head, None], v[:, head, None], mask)
            for head in range(k.shape[1])
        ],
        dim=1,
    )


def _capped(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    assert spec.softcap is not None
    scores = softcap(torch.matmul(q, k.transpose(2, 3)).float() * spec.scale, spec.softcap)
    scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return torch.matmul(scores.softmax(-1).to(v.dtype), v)
