"""The table of ops that a decoder runs over, and the reference table in plain differentiable torch.

In and out: tensors of the model's dtype, except logits, which are float32.  Attention is not an op: its memory
(a packed batch, KV pages) belongs to the caller, so it is an argument of the decoder's forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models.rope import rotation

Embed = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor, Tensor, float], Tensor]
LinearOp = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Rotation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Rope = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
GatedActivation = Callable[[Tensor], Tensor]
Head = Callable[[Tensor, Tensor], Tensor]
LogNormaliser = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ops:
    """The entries that a faster table replaces.

    embed(token_ids[T], table[V, H]) -> [T, H]
    norm(x[..., N], weight[N], eps) -> [..., N]: RMSNorm over the last dimension
    linear(x[T, I], weight[O, I], bias[O] or None) -> [T, O]
    rotation(positions[T], frequencies[D/2]) -> (cos, sin) [T, D] float32, as models.rope.rotation gives them
    rope(q[T, Hq, D], k[T, Hkv, D], cos[T, D], sin[T, D]) -> (q, k) rotated
    gated_activation(gate_up[T, 2I]) -> [T, I]: silu(first half) * second half
    head(hidden[R, H], weight[V, H]) -> [R, V] float32
    log_normaliser(logits[R, V]) -> [R] float32: log of the sum of the exponentials
    """

    embed: Embed
    norm: Norm
    linear: LinearOp
    rotation: Rotation
    rope: Rope
    gated_activation: GatedActivation
    head: Head
    log_normaliser: LogNormaliser


def embed(token_ids: Tensor, table: Tensor) -> Tensor:
    return F.embedding(token_ids, table)


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm (arXiv 1910.07467), float32 inside and rounded once."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv 2104.09864), float32 inside and rounded once."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    swapped = torch.roll(x, x.shape[-1] // 2, dims=-1)
    return (x * cos).addcmul_(swapped.float(), sin).to(x.dtype)


def gated_activation(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def head(hidden: Tensor, weight: Tensor) -> Tensor:
    return F.linear(hidden, weight).float()


def log_normaliser(logits: Tensor) -> Tensor:
    return logits.logsumexp(dim=-1)


REFERENCE = Ops(
    embed=embed,
    norm=norm,
    linear=linear,
    rotation=rotation,
    rope=rope,
    gated_activation=gated_activation,
    head=head,
    log_normaliser=log_normaliser,
)
