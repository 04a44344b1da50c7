"""Computing in bfloat16 on float32 weights: a table of ops that casts each weight where it is used.

In: the table to wrap; out: a table.  The weights, their gradients and the optimiser's state stay float32, so that an
update too small for bfloat16 is not lost; nothing else of the model knows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from penstock.models.ops import REFERENCE, Ops


def ops_for(precision: str) -> Ops:
    """The reference table for "float32", its mixed form for "bfloat16"."""
    return REFERENCE if precision == "float32" else mixed(REFERENCE, torch.bfloat16)


def mixed(ops: Ops, dtype: torch.dtype) -> Ops:
    """``ops`` over weights of another dtype than ``dtype``, in which it computes."""

    def embed(token_ids: Tensor, table: Tensor) -> Tensor:
        # Looked up before it is cast: a batch uses few rows of the table.
        return ops.embed(token_ids, table).to(dtype)

    def norm(x: Tensor, weight: Tensor, eps: float, offset: float) -> Tensor:
        return ops.norm(x, weight.to(dtype), eps, offset)

    def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return ops.layer_norm(x, weight.to(dtype), bias.to(dtype), eps)

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return ops.linear(x, weight.to(dtype), None if bias is None else bias.to(dtype))

    def head(hidden: Tensor, weight: Tensor) -> Tensor:
        return ops.head(hidden, weight.to(dtype))

    return replace(ops, embed=embed, norm=norm, layer_norm=layer_norm, linear=linear, head=head)
