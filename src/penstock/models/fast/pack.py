"""Which of a decoder's weights are packed, and as what.

In: a wish and what the machine can do; out: a ``Pack`` for loading, or ``None`` where plain weights are best.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from penstock.models.decoder import Decoder
from penstock.models.experts import Router
from penstock.models.fast import bf16
from penstock.models.fast.bf16 import Bf16Weight
from penstock.models.fast.int4 import Int4Weight, group_size
from penstock.models.fast.int8 import Int8Weight
from penstock.models.linear import Linear
from penstock.models.packed import Kept, Kind, Pack, Packed


def packing(quantization: Literal["none", "int8", "int4"] = "none") -> Pack | None:
    """For a model in bfloat16.  Whether the machine can quantise is asked before (int8.is_supported)."""
    if quantization == "none":
        return partial(_packed, "bf16") if bf16.is_supported() else None
    return partial(_packed, quantization)


def _packed(kind: Kind, module: nn.Module, leaf: str, parameter: Tensor, kept: Kept | None) -> Sequence[Packed] | None:
    if isinstance(module, Router):
        # A router's weight is small, and another expert changes more than a rounded product does.
        kind = "bf16"
    if isinstance(module, Linear) and leaf == "weight":
        num_matrices = module.num_matrices
    elif isinstance(module, Decoder) and leaf == module.head_parameter:
        num_matrices = 1
        # The head decides between close tokens, and tied embeddings are its rows: four bits are too few.
        kind = "int8" if kind == "int4" else kind
    else:
        return None
    outputs, inputs = parameter.shape
    if kept is None:
        kept = Kept(kind, group_size(inputs))
    return [_empty(kept, outputs // num_matrices, inputs) for _ in range(num_matrices)]


def _empty(kept: Kept, num_rows: int, num_inputs: int) -> Packed:
    match kept.kind:
        case "bf16":
            return Bf16Weight(num_rows, num_inputs)
        case "int8":
            return Int8Weight(num_rows, num_inputs)
        case "int4":
            return Int4Weight(num_rows, num_inputs, kept.group)
