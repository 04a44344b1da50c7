"""The one matrix product of all models, over the table of ops; its weight may be several matrices in one.

In: rows; out: rows.  Allocates its parameters on the ambient device and never initialises them.
A packed weight (models/packed.py) may take the place of the plain one; it then multiplies instead of the table.
What adapters add to the product (models/low_rank.py) belongs to the caller, so it is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from penstock.models.ops import Ops
from penstock.models.packed import Packed

Adapt = Callable[["Linear", Tensor, Tensor], None]
"""(linear, x[T, inputs], y[T, outputs]): adds to ``y``, in place, what adapters make of ``x`` there."""


class Linear(nn.Module):
    """One matrix that may be several fused ones: ``parts`` are the rows of each, in order."""

    def __init__(self, inputs: int, parts: tuple[int, ...], *, bias: bool, dtype: torch.dtype, ops: Ops) -> None:
        super().__init__()
        self.parts = parts
        self.weight = parameter(sum(parts), inputs, dtype=dtype)
        self.bias = parameter(sum(parts), dtype=dtype) if bias else None
        self.packed: Sequence[Packed] = ()
        self._op = ops.linear

    def forward(self, x: Tensor, adapt: Adapt | None = None) -> Tensor:
        y = self.packed[0].multiply(x, self.bias) if self.packed else self._op(x, self.weight, self.bias)
        if adapt is not None:
            adapt(self, x, y)
        return y

    @property
    def num_matrices(self) -> int:
        """How many packed weights take this one's place."""
        return 1

    def take_packed(self, packed: Sequence[Packed]) -> None:
        """Multiply by ``packed`` from now on; the plain weight is given up."""
        assert len(packed) == self.num_matrices
        self.packed = packed
        del self.weight


class StackedLinear(Linear):
    """``count`` matrices of one shape below one another, of which a call uses one."""

    def __init__(self, inputs: int, parts: tuple[int, ...], count: int, *, dtype: torch.dtype, ops: Ops) -> None:
        super().__init__(inputs, parts * count, bias=False, dtype=dtype, ops=ops)
        self._rows = sum(parts)
        self._count = count

    @property
    def num_matrices(self) -> int:
        return self._count

    def apply_one(self, index: int, x: Tensor) -> Tensor:
        """x[R, inputs] through matrix ``index``."""
        if self.packed:
            return self.packed[index].multiply(x, None)
        return self._op(x, self.weight[index * self._rows : (index + 1) * self._rows], None)


def parameter(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """An uninitialised parameter."""
    return nn.Parameter(torch.empty(shape, dtype=dtype))
