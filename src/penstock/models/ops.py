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
from penstock.models.traits import Activation

Embed = Callable[[Tensor, Tensor], Tensor]
Norm = Callable[[Tensor, Tensor, float, float], Tensor]
LayerNorm = Callable[[Tensor, Tensor, Tensor, float], Tensor]
LinearOp = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Rotation = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Rope = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
GatedActivation = Callable[[Tensor, Activation], Tensor]
Softcap = Callable[[Tensor, float], Tensor]
Head = Callable[[Tensor, Tensor], Tensor]
LogNormaliser = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Ops:
    """The entries that a faster table replaces.

    embed(token_ids[T], table[V, H]) -> [T, H]
    norm(x[..., N], weight[N], eps, offset) -> [..., N]: RMSNorm over the last dimension, times (offset + weight)
    layer_norm(x[..., N], weight[N], bias[N], eps) -> [..., N]: LayerNorm over the last dimension
    linear(x[T, I], weight[O, I], bias[O] or None) -> [T, O]
    rotation(positions[T], frequencies[R/2]) -> (cos, sin) [T, R] float32, as models.rope.rotation gives them
    rope(q[T, Hq, D], k[T, Hkv, D], cos[T, R], sin[T, R]) -> (q, k) with the first R of the D dimensions rotated
    gated_activation(gate_up[T, 2I], activation) -> [T, I]: activation(first half) * second half
    head(hidden[R, H], weight[V, H]) -> [R, V] float32
    softcap(x, cap) -> cap * tanh(x / cap)
    log_normaliser(logits[R, V]) -> [R] float32: log of the sum of the exponentials
    """

    embed: Embed
    norm: Norm
    layer_norm: LayerNorm
    linear: LinearOp
    rotation: Rotation
    rope: Rope
    gated_activation: GatedActivation
    head: Head
    softcap: Softcap
    log_normaliser: LogNormaliser


def embed(token_ids: Tensor, table: Tensor) -> Tensor:
    return F.embedding(token_ids, table)


def norm(x: Tensor, weight: Tensor, eps: float, offset: float = 0.0) -> Tensor:
    """RMSNorm (arXiv 1910.07467), float32 inside and rounded once."""
    size = (x.shape[-1],)
    if offset:
        return (F.rms_norm(x.float(), size, None, eps) * (offset + weight.float())).to(x.dtype)
    return F.rms_norm(x, size, weight, eps)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """LayerNorm (arXiv 1607.06450), float32 inside and rounded once."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary positions (arXiv 2104.09864), float32 inside and rounded once."""
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return _rotate(q, cos, sin), _rotate(k, cos, sin)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    num_rotated = cos.shape[-1]
    if num_rotated < x.shape[-1]:
        return torch.cat((_rotate(x[..., :num_rotated], cos, sin), x[..., num_rotated:]), dim=-1)
    swapped = torch.roll(x, x.shape[-1] // 2, dims=-1)
    return (x * cos).addcmul_(swapped.float(), sin).to(x.dtype)


def gated_activation(gate_up: Tensor, activation: Activation) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    match activation:
        case "silu":
            return F.silu(gate) * up
        case "gelu":
            return F.gelu(gate) * up
        case "gelu_tanh":
            return F.gelu(gate, approximate="tanh") * up


def head(hidden: Tensor, weight: Tensor) -> Tensor:
    return F.linear(hidden, weight).float()


def softcap(x: Tensor, cap: float) -> Tensor:
    return torch.tanh(x / cap) * cap


def log_normaliser(logits: Tensor) -> Tensor:
    return logits.logsumexp(dim=-1)


REFERENCE = Ops(
    embed=embed,
    norm=norm,
    layer_norm=layer_norm,
    linear=linear,
    rotation=rotation,
    rope=rope,
    gated_activation=gated_activation,
    head=head,
    softcap=softcap,
    log_normaliser=log_normaliser,
)
