"""Which of a decoder's weights are packed, and as what.

In: a wish and what the machine can do; out: a ``Pack`` for loading, or ``None`` where plain weights are best.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from penstock.models.decoder import Decoder
from penstock.models.fast import bf16
from penstock.models.linear import Linear
from penstock.models.packed import Pack, Packed


def packing() -> Pack | None:
    """For a model in bfloat16."""
    return _in_bf16 if bf16.is_supported() else None


def _in_bf16(module: nn.Module, leaf: str, parameter: Tensor) -> Sequence[Packed] | None:
    if isinstance(module, Linear) and leaf == "weight":
        num_matrices = module.num_matrices
    elif isinstance(module, Decoder) and leaf == module.head_parameter:
        num_matrices = 1
    else:
        return None
    outputs, inputs = parameter.shape
    return [bf16.Bf16Weight(outputs // num_matrices, inputs) for _ in range(num_matrices)]
