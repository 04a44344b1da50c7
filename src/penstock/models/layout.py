"""Which checkpoint tensor is which rows of which decoder parameter: the one table for loading and saving.

In: a decoder, on any device; out: pieces in the order of its parameters.  Touches no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from penstock.models.decoder import Decoder, Linear

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Piece:
    """Checkpoint tensor ``name`` is rows ``start`` .. ``start + rows - 1`` of decoder parameter ``parameter``."""

    name: str
    parameter: str
    start: int
    rows: int
    shape: tuple[int, ...]

    def of(self, parameter: Tensor) -> Tensor:
        """The contiguous view of the parameter that this piece is."""
        return parameter[self.start : self.start + self.rows]


def pieces(decoder: Decoder) -> Iterator[Piece]:
    """Every checkpoint tensor that makes up ``decoder``."""
    tensors = decoder.config.family.tensors
    for parameter_name, parameter in decoder.named_parameters():
        layer = _LAYER.search(parameter_name)
        sources = tensors[_LAYER.sub(".*.", parameter_name)]
        if layer is not None:
            sources = tuple(source.replace("*", layer[1]) for source in sources)
        module = decoder.get_submodule(parameter_name.rpartition(".")[0])
        parts = module.parts if isinstance(module, Linear) else (parameter.shape[0],)
        start = 0
        for source, rows in zip(sources, parts, strict=True):
            yield Piece(source, parameter_name, start, rows, (rows, *parameter.shape[1:]))
            start += rows
