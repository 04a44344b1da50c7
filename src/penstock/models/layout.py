"""Which checkpoint tensor is which rows of which parameter: the one table for loading and saving.

In: a model, on any device, and its tensor names; out: pieces in the order of its parameters.  Touches no file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from penstock.models.linear import Linear

_LAYER = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Piece:
    """Checkpoint tensor ``name`` is rows ``start`` .. ``start + rows - 1`` of the model's ``parameter``."""

    name: str
    parameter: str
    start: int
    rows: int
    shape: tuple[int, ...]

    def of(self, parameter: Tensor) -> Tensor:
        """The contiguous view of the parameter that this piece is."""
        return parameter[self.start : self.start + self.rows]


def pieces(model: nn.Module, tensors: Mapping[str, tuple[str, ...]]) -> Iterator[Piece]:
    """Every checkpoint tensor that makes up ``model``; ``tensors`` is its table, as :class:`~.family.Family` has it."""
    for parameter_name, parameter in model.named_parameters():
        layer = _LAYER.search(parameter_name)
        sources = tensors[_LAYER.sub(".*.", parameter_name)]
        if layer is not None:
            sources = tuple(source.replace("*", layer[1]) for source in sources)
        module = model.get_submodule(parameter_name.rpartition(".")[0])
        parts = module.parts if isinstance(module, Linear) else (parameter.shape[0],)
        start = 0
        for source, rows in _matched(sources, parts):
            yield Piece(source, parameter_name, start, rows, (rows, *parameter.shape[1:]))
            start += rows


def _matched(sources: tuple[str, ...], parts: tuple[int, ...]) -> Iterator[tuple[str, int]]:
    """Each tensor's name with its rows: one for each part, one for them all, or the same ones for every expert."""
    if len(sources) == 1 and "#" not in sources[0]:
        yield sources[0], sum(parts)
        return
    num_copies = len(parts) // len(sources)
    names = (source.replace("#", str(copy)) for copy in range(num_copies) for source in sources)
    yield from zip(names, parts, strict=True)
