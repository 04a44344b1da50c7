"""Rows of bfloat16 as whole numbers of eight bits, each row by its own scale.

In: x[T, I]; out: bytes, a scale per row, and the sums of the bytes over groups of inputs.
Symmetric: the largest value of a row is 127 and zero is zero.  A row with a NaN or an infinity gets the scale NaN, so
that every product with it is NaN and shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.models.fast.byte_parts import quantise_bf16
from penstock.models.fast.jobs import RowsAt
from penstock.models.fast.simd import LANES
from penstock.models.fast.team import NUM_ITEMS, Job, take

(X, X_STRIDE, NUM_ROWS, OUT, OUT_STRIDE, SCALES, SUMS, NUM_GROUPS, GROUP_STEPS, OFFSET, ITEM_ROWS) = range(2, 13)
"""Arguments: addresses, strides in bytes; a row has NUM_GROUPS groups of GROUP_STEPS registers of 16 values.
SUMS: float32 [T, NUM_GROUPS]; OFFSET: is added to each number before it is stored as a byte."""

_ITEM_VALUES = 1 << 15
"""Values of an item at least: less would not pay for a thread."""


def _quantise(job: Any) -> None:
    item = take(job)
    while item < job[NUM_ITEMS]:
        first = item * job[ITEM_ROWS]
        for row in range(first, min(job[NUM_ROWS], first + job[ITEM_ROWS])):
            quantise_bf16(
                job[X] + row * job[X_STRIDE],
                job[OUT] + row * job[OUT_STRIDE],
                job[SCALES] + 4 * row,
                job[SUMS] + 4 * row * job[NUM_GROUPS],
                job[NUM_GROUPS],
                job[GROUP_STEPS],
                job[OFFSET],
            )
        item = take(job)


quantise_job = Job(_quantise)


@dataclass(frozen=True, slots=True)
class Quantised:
    """``values`` [T, I] uint8, ``scales`` [T] and ``sums`` [T, groups] float32; I is a whole number of groups."""

    values: Tensor
    scales: Tensor
    sums: Tensor

    @property
    def at(self) -> RowsAt:
        return RowsAt(self.values.data_ptr(), self.values.shape[1], self.scales.data_ptr(), self.sums.data_ptr())


def quantise(x: Tensor, group: int, *, num_groups: int, offset: int) -> Quantised:
    """Rows x[T, I] of bfloat16, with zeros up to ``num_groups`` groups of ``group`` inputs (a multiple of 16).

    ``offset`` 128 makes the bytes unsigned, 0 leaves them signed.
    """
    short = group * num_groups - x.shape[1]
    x = F.pad(x, (0, short)) if short else x.contiguous()
    num_rows, size = x.shape
    values = torch.empty(num_rows, size, dtype=torch.uint8)
    scales, sums = torch.empty(num_rows), torch.empty(num_rows, num_groups)
    item_rows = max(1, _ITEM_VALUES // size)
    quantise_job.run(
        -(-num_rows // item_rows),
        x.data_ptr(),
        x.stride(0) * x.element_size(),
        num_rows,
        values.data_ptr(),
        size,
        scales.data_ptr(),
        sums.data_ptr(),
        num_groups,
        group // LANES,
        offset,
        item_rows,
    )
    return Quantised(values, scales, sums)
