"""The exact table of ops: a row's result is the same bits whatever other rows it is computed with.

In and out: as models.ops.Ops says; inside float32, rounded once.  Every linear is a product of tiles of the same shape,
so the library that multiplies has no choice to make.  Gradients are those of the reference ops, so it trains as well.
Argued in docs/decisions/005-exact-mode.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models import ops as reference
from penstock.models.exact import kernels
from penstock.models.threads import over_rows
from penstock.models.traits import Activation

ROW_TILE = 16
"""Rows of one product.  Fewer cost a lone sequence less, more cost a prompt less."""

_KINDS: dict[Activation, int] = {
    "silu": kernels.SILU,
    "gelu": kernels.GELU,
    "gelu_tanh": kernels.GELU_TANH,
}

Floats = npt.NDArray[np.float32]
Tensors = Tensor | tuple[Tensor, ...]


def with_gradient_of(plain: Callable[..., Tensors], exact: Callable[..., Tensors]) -> Callable[..., Any]:
    """``exact`` on the way forward; on the way back the gradient of ``plain`` at the same inputs."""

    def op(*inputs: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs):
            return _Borrowed.apply(plain, exact, *inputs)  # type: ignore[no-untyped-call]  # torch's has no types
        return exact(*inputs)

    return op


class _Borrowed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, plain: Callable[..., Tensors], exact: Callable[..., Tensors], *inputs: Any) -> Any:
        ctx.plain = plain
        ctx.others = [None if isinstance(x, Tensor) else x for x in inputs]
        ctx.save_for_backward(*(x if isinstance(x, Tensor) else None for x in inputs))
        return exact(*inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        wanted = ctx.needs_input_grad[2:]
        inputs = [
            other if saved is None else saved.detach().requires_grad_(want)
            for saved, other, want in zip(ctx.saved_tensors, ctx.others, wanted, strict=True)
        ]
        with torch.enable_grad():
            outputs = ctx.plain(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        leaves = [x for x, want in zip(inputs, wanted, strict=True) if want]
        found = iter(torch.autograd.grad(outputs, leaves, gradients, allow_unused=True))
        return None, None, *(next(found) if want else None for want in wanted)


def floats(x: Tensor) -> Floats:
    """A float32 copy or view of ``x`` as numpy, contiguous."""
    array: Floats = x.detach().float().contiguous().numpy()
    return array


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x[T, I] as ceil(T / ROW_TILE) products of [ROW_TILE, I] with weight[O, I], the last one padded with zeros."""
    num_rows = x.shape[0]
    lacking = -num_rows % ROW_TILE
    padded = F.pad(x, (0, 0, 0, lacking)) if lacking else x.contiguous()
    tiles = [F.linear(tile, weight, bias) for tile in torch.split(padded, ROW_TILE)]
    return (tiles[0] if len(tiles) == 1 else torch.cat(tiles))[:num_rows]


def norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
    gain = floats(weight) + np.float32(offset)
    return _norm(x, gain, np.zeros_like(gain), eps, centred=False)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return _norm(x, floats(weight), floats(bias), eps, centred=True)


def _norm(x: Tensor, weight: Floats, bias: Floats, eps: float, *, centred: bool) -> Tensor:
    rows = floats(x.flatten(0, -2))
    out, least = np.empty_like(rows), np.float32(eps)
    over_rows(len(rows), rows.shape[1], lambda a, b: kernels.norm(rows[a:b], weight, bias, least, centred, out[a:b]))
    return torch.from_numpy(out).view(x.shape).to(x.dtype)


def rotation(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    turned = np.empty((2, len(positions), len(frequencies)), np.float32)
    kernels.rotation(positions.numpy(), floats(frequencies), turned[0], turned[1])
    cos, sin = torch.from_numpy(turned)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return _rotate(q, floats(cos), floats(sin)), _rotate(k, floats(cos), floats(sin))


def _rotate(x: Tensor, cos: Floats, sin: Floats) -> Tensor:
    rows = floats(x)
    out = np.empty_like(rows)
    kernels.rotate(rows, cos, sin, out)
    return torch.from_numpy(out).to(x.dtype)


def gated_activation(gate_up: Tensor, activation: Activation) -> Tensor:
    rows, kind = floats(gate_up), _KINDS[activation]
    out = np.empty((rows.shape[0], rows.shape[1] // 2), np.float32)
    over_rows(len(rows), 8 * out.shape[1], lambda a, b: kernels.gated(rows[a:b], kind, out[a:b]))
    return torch.from_numpy(out).to(gate_up.dtype)


def head(hidden: Tensor, weight: Tensor) -> Tensor:
    return linear(hidden, weight, None).float()


def softcap(x: Tensor, cap: float) -> Tensor:
    flat = floats(x).reshape(-1)
    out = np.empty_like(flat)
    over_rows(len(flat), 8, lambda a, b: kernels.softcap(flat[a:b], np.float32(cap), out[a:b]))
    return torch.from_numpy(out).view(x.shape).to(x.dtype)


def log_normaliser(logits: Tensor) -> Tensor:
    rows = floats(logits)
    out = np.empty(len(rows), np.float32)
    over_rows(len(rows), 8 * rows.shape[1], lambda a, b: kernels.log_normaliser(rows[a:b], out[a:b]))
    return torch.from_numpy(out)


EXACT = reference.Ops(
    embed=reference.embed,
    norm=with_gradient_of(reference.norm, norm),
    layer_norm=with_gradient_of(reference.layer_norm, layer_norm),
    linear=with_gradient_of(reference.linear, linear),
    rotation=rotation,
    rope=with_gradient_of(reference.rope, rope),
    gated_activation=with_gradient_of(reference.gated_activation, gated_activation),
    head=with_gradient_of(reference.head, head),
    softcap=with_gradient_of(reference.softcap, softcap),
    log_normaliser=with_gradient_of(reference.log_normaliser, log_normaliser),
)
