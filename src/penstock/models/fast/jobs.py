"""What all packed weights prepare alike for a product: biases, outputs, and the cut into items.

In: sizes and tensors; out: the same as the kernels of products.py take them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.models.fast.layout import BLOCK
from penstock.models.fast.products import GROUP

_ITEM_ROWS = 48
"""Rows of an item at most: enough that reading the weight from the cache again costs little, few enough to share."""


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


def product_items(num_rows: int, num_blocks: int, group: int = GROUP) -> tuple[int, int]:
    """How many items of ``group`` blocks a product has, and the rows of each."""
    cuts = -(-num_rows // _ITEM_ROWS)
    return cuts * -(-num_blocks // group), -(-num_rows // cuts) if cuts else 0
