"""What a LoRA adapter adds to a decoder's linears (arXiv 2106.09685), and how the rows of one batch get theirs.

In: a linear's inputs and outputs; out: the outputs of each adapter's rows, changed in place.  Two products of the table
of ops for each matrix, over the rows of one adapter: in exact mode a row's bits do not depend on whose rows are beside.
Argued in docs/decisions/022-adapters.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from penstock.models.linear import Adapt, Linear
from penstock.models.ops import Ops

RANK_MULTIPLE = 16
"""Ranks are filled up with zeros to a multiple of this: what a vector register holds."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """Outputs ``start`` .. of a linear get (x @ down.T) @ up: down [R, I], up [R, O], the scale in ``up``."""

    start: int
    down: Tensor
    up: Tensor

    @property
    def num_bytes(self) -> int:
        return self.down.nbytes + self.up.nbytes


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter of one decoder.  ``digest`` names its content: what is equal computes the same.

    ``changes``: by linear, what each of its matrices gets.  ``rank``: the largest, before it was filled up.
    """

    digest: str
    rank: int
    changes: Mapping[Linear, tuple[LowRank, ...]]

    @property
    def num_bytes(self) -> int:
        return sum(change.num_bytes for parts in self.changes.values() for change in parts)


def adapting(ops: Ops, rows: Sequence[tuple[Adapter, Tensor]]) -> Adapt:
    """For one batch without gradients: the rows [R] int64 of each adapter.  Those of nobody stay the base model's."""

    def adapt(linear: Linear, x: Tensor, y: Tensor) -> None:
        for adapter, own in rows:
            parts = adapter.changes.get(linear)
            if parts is None:
                continue
            inputs = x.index_select(0, own)
            for part in parts:
                change = ops.linear(ops.linear(inputs, part.down, None), part.up.t(), None)
                y[:, part.start : part.start + change.shape[1]].index_add_(0, own, change)

    return adapt
