"""What all packed weights prepare alike for a product: rows, biases, outputs, and the cut into items.

In: sizes and tensors; out: the same as the kernels of products.py take them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from penstock.models.fast.layout import BLOCK
from penstock.models.fast.products import GROUP
from penstock.models.fast.team import FIRST, Job
from penstock.models.fast.tiles import ITEM_ROWS, NUM_ROWS

_ITEM_ROWS = 72
"""Rows of an item at most: enough that reading the weight from the cache again costs little, few enough that what they
multiply stays there, too."""
_MIN_ITEMS, _MIN_ROWS = 16, 14
"""Where there are few outputs, rows are cut until there are so many items for threads to share, or so few rows."""


@dataclass(frozen=True, slots=True)
class Form:
    """As what somebody takes rows: float32 where there are no groups, else bytes; or BFLOAT16.

    Bytes are ``offset`` above the numbers that they stand for; those of each of ``num_groups`` groups are summed.
    """

    num_groups: int = 0
    offset: int = 0

    def row_bytes(self, width: int) -> int:
        """From one row of ``width`` values to the next."""
        if self.num_groups == 0:
            return 4 * float_width(width)
        return width if self.num_groups > 0 else 2 * width


BFLOAT16 = Form(-1)
"""As hidden states leave a step."""


def float_width(num_inputs: int) -> int:
    """From one row of float32 that a weight multiplies to the next: a line more than the inputs.

    Rows a multiple of 4,096 bytes apart would share few places of the first cache: a third of the speed of many rows.
    """
    return num_inputs + BLOCK


@dataclass(frozen=True, slots=True)
class RowsAt:
    """Addresses of rows, ``row_bytes`` apart: bytes end to end, or float32 ``float_width`` apart.

    ``scales`` [T] and ``sums`` [T, groups], float32, go with bytes.
    """

    values: int
    row_bytes: int
    scales: int = 0
    sums: int = 0


class ByJob(Protocol):
    """A packed weight that a job multiplies by."""

    num_rows: int
    blocks: Tensor
    job: Job

    @property
    def row_width(self) -> int:
        """Inputs, with those that the layout fills up with."""
        ...

    @property
    def form(self) -> Form: ...

    def arguments(self, bias: Tensor | None, x: RowsAt, out: int, *, wide: bool) -> list[int]:
        """What ``job`` takes, but for how many rows there are and how many an item has."""
        ...


class Bias:
    """A bias as kernels add it: float32, zeros beyond its end or without one; kept, since it is the same each time."""

    def __init__(self, num_blocks: int) -> None:
        self._values = torch.zeros(num_blocks * BLOCK)
        self._source: Tensor | None = None

    def address(self, bias: Tensor | None) -> int:
        if bias is not self._source:
            self._values.zero_()
            if bias is not None:
                self._values[: len(bias)] = bias.detach()
            self._source = bias
        return self._values.data_ptr()


def new_output(num_rows: int, num_blocks: int, dtype: torch.dtype) -> Tensor:
    """[num_rows, all outputs of the blocks], undefined: kernels write whole blocks."""
    return torch.empty(num_rows, num_blocks * BLOCK, dtype=dtype)


def product_arguments(
    blocks: Tensor, bias: int, x: RowsAt, out: int, own: Sequence[int] = (), *, wide: bool
) -> list[int]:
    """What every kind of weight tells its job (tiles.py), and what one kind has of its ``own``; no rows yet."""
    num_blocks, num_steps = blocks.shape[:2]
    out_bytes = num_blocks * BLOCK * (4 if wide else 2)
    shape = 0, num_steps, num_blocks, x.row_bytes, out_bytes, 0, int(wide)
    return [x.values, blocks.data_ptr(), bias, out, *shape, *own]


def product_items(num_rows: int, num_blocks: int) -> tuple[int, int]:
    """How many items a product has, and the rows of each."""
    groups = -(-num_blocks // GROUP)
    cuts = max(-(-num_rows // _ITEM_ROWS), min(-(-_MIN_ITEMS // groups), -(-num_rows // _MIN_ROWS)))
    return cuts * groups, -(-num_rows // cuts) if cuts else 0


def multiply(weight: ByJob, x: RowsAt, num_rows: int, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[num_rows, outputs] in ``dtype``: bfloat16 or float32."""
    out = new_output(num_rows, len(weight.blocks), dtype)
    num_items, item_rows = product_items(num_rows, len(weight.blocks))
    own = weight.arguments(bias, x, out.data_ptr(), wide=dtype == torch.float32)
    own[NUM_ROWS - FIRST], own[ITEM_ROWS - FIRST] = num_rows, item_rows
    weight.job.run(num_items, *own)
    return out[:, : weight.num_rows]
