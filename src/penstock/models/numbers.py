"""The numbers of weights that somebody quantised, from the layouts that checkpoints have them in.

In: a scheme and the tensors of one weight; out: :class:`~penstock.models.packed.Numbers`, row by row.
Eight numbers of four bits lie in an int32, the first in its lowest bits; which numbers these are differs:
GPTQ packs along the inputs, AWQ along the outputs in an order of its own, compressed-tensors along the inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.models.checkpoint import StoredTensor
from penstock.models.packed import Kept, Numbers
from penstock.models.quantised import Scheme
from penstock.models.stored import FLOATS, read_whole
from penstock.wire.errors import Problem

_PER_WORD = 8
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where in a word of AWQ the numbers of its eight outputs lie, in the outputs' order."""


@dataclass(frozen=True, slots=True)
class QuantisedTensor:
    """One weight[rows, inputs] in several stored tensors; ``parts``: by the last part of their names."""

    name: str
    scheme: Scheme
    parts: Mapping[str, StoredTensor]
    rows: int
    inputs: int

    @property
    def kept(self) -> Kept:
        return Kept(self.scheme.kind, self.scheme.group_of(self.inputs))

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self.parts.values())

    @property
    def names(self) -> set[str]:
        return {_part_name(self.name, part) for part in self.parts}


def find(
    scheme: Scheme | None, name: str, shape: tuple[int, ...], stored: Mapping[str, StoredTensor]
) -> QuantisedTensor | None:
    """The parts of weight ``name``, checked by their headers; ``None`` where it is not quantised.

    Raises ``checkpoint_invalid`` with the file and the tensor.
    """
    if scheme is None or len(shape) != 2 or not name.endswith(".weight"):
        return None
    first = stored.get(_part_name(name, scheme.parts[0]))
    if first is None or (first.dtype in FLOATS and scheme.parts[0] == "weight"):
        return None
    parts = {}
    for part in (*scheme.parts, *scheme.spare_parts):
        tensor = stored.get(_part_name(name, part))
        if tensor is not None:
            parts[part] = tensor
        elif part in scheme.parts:
            raise Problem("checkpoint_invalid", f"{first.file}: the tensor {_part_name(name, part)} is missing.")
    found = QuantisedTensor(name, scheme, parts, *shape)
    for part, (dtypes, expected) in _expected(found):
        _check(found, part, dtypes, expected)
    return found


def read_numbers(tensor: QuantisedTensor) -> Numbers:
    """All rows.  Raises ``checkpoint_invalid`` or ``checkpoint_unsupported`` with the file and the tensor."""
    parts = {part: read_whole(stored, _part_name(tensor.name, part)) for part, stored in tensor.parts.items()}
    _check_spare(tensor, parts)
    rows, inputs = tensor.rows, tensor.inputs
    match tensor.scheme.layout:
        case "int-quantized":
            return Numbers(parts["weight"], parts["weight_scale"], None)
        case "pack-quantized":
            values = _nibbles(parts["weight_packed"])[:, :inputs]
            scales = parts["weight_scale"]
            if tensor.scheme.symmetric:
                return Numbers(values, scales, torch.full(scales.shape, _PER_WORD, dtype=torch.uint8))
            return Numbers(values, scales, _nibbles(parts["weight_zero_point"].T)[:, :rows].T)
        case "awq":
            values, zeros = (_awq_nibbles(parts[part])[:, :rows].T for part in ("qweight", "qzeros"))
            return Numbers(values, parts["scales"].T, zeros)
        case "gptq" | "gptq_v2" as layout:
            values = _nibbles(parts["qweight"].T)[:, :inputs]
            zeros = _nibbles(parts["qzeros"])[:, :rows].T
            # The first format stores what is one less than the zero point.
            return Numbers(values, parts["scales"].T, (zeros + 1) & 15 if layout == "gptq" else zeros)


def _part_name(name: str, part: str) -> str:
    return name.removesuffix("weight") + part


def _expected(tensor: QuantisedTensor) -> Iterator[tuple[str, tuple[tuple[str, ...], tuple[int, ...]]]]:
    """Each part that is there with its dtypes and its shape."""
    rows, inputs, scheme = tensor.rows, tensor.inputs, tensor.scheme
    groups = -(-inputs // scheme.group_of(inputs))
    words = {size: -(-size // _PER_WORD) for size in (rows, inputs)}
    shapes: dict[str, tuple[int, ...]] = {
        "scales": (groups, rows),
        "qzeros": (groups, words[rows]),
        "qweight": (inputs, words[rows]) if scheme.layout == "awq" else (words[inputs], rows),
        "g_idx": (inputs,),
        "weight": (rows, inputs),
        "weight_packed": (rows, words[inputs]),
        "weight_scale": (rows, groups),
        "weight_zero_point": (words[rows], groups),
        "weight_shape": (2,),
    }
    dtypes = {"weight": ("I8",), "weight_shape": ("I32", "I64")}
    for part in tensor.parts:
        floating = part in ("scales", "weight_scale")
        yield part, (tuple(FLOATS) if floating else dtypes.get(part, ("I32",)), shapes[part])


def _check(tensor: QuantisedTensor, part: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
    stored = tensor.parts[part]
    if stored.shape != shape or stored.dtype not in dtypes:
        raise Problem(
            "checkpoint_invalid",
            f"{stored.file}: tensor {_part_name(tensor.name, part)} is {stored.dtype} of shape {list(stored.shape)}, "
            f"but by config.json it has to be {' or '.join(dtypes)} of shape {list(shape)}.",
        )


def _check_spare(tensor: QuantisedTensor, parts: Mapping[str, Tensor]) -> None:
    shape = parts.get("weight_shape")
    if shape is not None and shape.tolist() != [tensor.rows, tensor.inputs]:
        raise Problem(
            "checkpoint_invalid",
            f"{tensor.parts['weight_shape'].file}: {_part_name(tensor.name, 'weight_shape')} says {shape.tolist()}, "
            f"but config.json asks for {[tensor.rows, tensor.inputs]}.",
        )
    groups = parts.get("g_idx")
    if groups is not None and not torch.equal(groups, torch.arange(tensor.inputs) // tensor.kept.group):
        raise Problem(
            "checkpoint_unsupported",
            f"{tensor.parts['g_idx'].file}: {_part_name(tensor.name, 'g_idx')} mixes the inputs of groups (desc_act), "
            "which is not read. Take a release that was quantised without it.",
        )


def _nibbles(words: Tensor) -> Tensor:
    """int32 [R, W] -> uint8 [R, 8 * W], each word's from its lowest bits on."""
    shifts = torch.arange(0, 4 * _PER_WORD, 4, dtype=torch.int32)
    return (words[..., None] >> shifts & 15).flatten(1).to(torch.uint8)


def _awq_nibbles(words: Tensor) -> Tensor:
    """int32 [R, W] -> uint8 [R, 8 * W], in the order of the outputs."""
    nibbles = _nibbles(words).view(len(words), -1, _PER_WORD)
    return nibbles[:, :, list(_AWQ_ORDER)].flatten(1)
