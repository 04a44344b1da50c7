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
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from penstock.models.fast import simd
from penstock.models.fast.simd import F32, FLOATS, I64, INTS, LANES
from penstock.models.fast.team import NUM_ITEMS, Job, take

(X, X_STRIDE, NUM_ROWS, OUT, OUT_STRIDE, SCALES, SUMS, NUM_GROUPS, GROUP_STEPS, OFFSET, ITEM_ROWS) = range(2, 13)
"""Arguments: addresses, strides in bytes; a row has NUM_GROUPS groups of GROUP_STEPS registers of 16 values.
SUMS: float32 [T, NUM_GROUPS]; OFFSET: is added to each number before it is stored as a byte."""

_TINY = 1e-30
"""A row whose largest value is below this is taken for zeros: its reciprocal would not be finite."""
_MOST = 127.0
_ITEM_VALUES = 1 << 15
"""Values of an item at least: less would not pay for a thread."""


def _quantise_row(b: Any, job: Any, row: Any) -> None:
    def argument(index: int) -> Any:
        return b.load(b.gep(job, [ir.Constant(I64, index)]))

    def values(i: Any) -> Any:
        return simd.from_bf16(b, simd.load(b, b.add(x, b.mul(i, ir.Constant(I64, 2 * LANES))), simd.HALF_BFLOATS))

    x = b.add(argument(X), b.mul(row, argument(X_STRIDE)))
    out = b.add(argument(OUT), b.mul(row, argument(OUT_STRIDE)))
    num_groups, group_steps = argument(NUM_GROUPS), argument(GROUP_STEPS)
    zero = simd.constant(FLOATS, 0.0)

    def look(i: Any, carried: Any) -> list[Any]:
        value = values(i)
        size = simd.call(b, "llvm.fabs.v16f32", FLOATS, [value])
        return [simd.maximum(b, size, carried[0]), b.fadd(carried[1], b.fmul(value, zero))]

    peaks, poison = simd.loop(b, b.mul(num_groups, group_steps), [zero, zero], look)
    peak = simd.lanes_max(b, peaks)
    scale = b.fadd(b.fdiv(peak, ir.Constant(F32, _MOST)), simd.lanes_sum(b, poison))
    simd.store(b, scale, b.add(argument(SCALES), b.mul(row, ir.Constant(I64, 4))))
    inverse = b.fdiv(ir.Constant(F32, _MOST), peak)
    visible = b.fcmp_ordered(">", peak, ir.Constant(F32, _TINY))
    factor = simd.spread(b, b.select(visible, inverse, ir.Constant(F32, 0.0)))
    offset = simd.spread(b, b.trunc(argument(OFFSET), simd.I32))
    sums = b.add(argument(SUMS), b.mul(b.mul(row, num_groups), ir.Constant(I64, 4)))

    def group(nth: Any, _: Any) -> list[Any]:
        def narrow(i: Any, carried: Any) -> list[Any]:
            at = b.add(b.mul(nth, group_steps), i)
            rounded = simd.call(b, "llvm.rint.v16f32", FLOATS, [b.fmul(values(at), factor)])
            whole = b.fptosi(rounded, INTS)
            bytes_ = b.trunc(b.add(whole, offset), ir.VectorType(ir.IntType(8), LANES))
            simd.store(b, bytes_, b.add(out, b.mul(at, ir.Constant(I64, LANES))))
            return [b.fadd(carried[0], rounded)]

        (total,) = simd.loop(b, group_steps, [zero], narrow)
        simd.store(b, simd.lanes_sum(b, total), b.add(sums, b.mul(nth, ir.Constant(I64, 4))))
        return []

    simd.loop(b, num_groups, [], group)


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def _row(_context: Any, job: Any, row: Any) -> Any:
    def made(context: Any, b: Any, _s: Any, values: Any) -> Any:
        _quantise_row(b, *values)
        return context.get_dummy_value()

    return types.void(types.CPointer(types.int64), types.int64), made


def _quantise(job: Any) -> None:
    item = take(job)
    while item < job[NUM_ITEMS]:
        first = item * job[ITEM_ROWS]
        for row in range(first, min(job[NUM_ROWS], first + job[ITEM_ROWS])):
            _row(job, row)
        item = take(job)


quantise_job = Job(_quantise)


@dataclass(frozen=True, slots=True)
class Quantised:
    """``values`` [T, I] uint8, ``scales`` [T] and ``sums`` [T, groups] float32; I is a whole number of groups."""

    values: Tensor
    scales: Tensor
    sums: Tensor


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
