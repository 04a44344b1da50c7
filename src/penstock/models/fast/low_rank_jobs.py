"""What adapters add to a product, as one job: an item is a row, from its inputs over its adapter's rank to its outputs.

In: rows of float32 or of bytes, and which adapter each of some rows has; out: float32 rows, added to in place.
A hundredth of the product's arithmetic, so that rows are not put together: a matrix of an adapter stays in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.row_parts import floats_at, ints_at
from penstock.models.fast.simd import F32, FLOATS, HALF_BFLOATS, I64, INTS, LANES
from penstock.models.fast.team import NUM_ITEMS, Job, take
from penstock.models.linear import Linear
from penstock.models.low_rank import Adapter

Ints = npt.NDArray[np.int64]

(ROWS, WHOSE, CHANGES, X, X_STRIDE, X_SCALES, OFFSET, NUM_INPUTS, OUT, NUM_OUTPUTS) = range(2, 12)
"""Arguments.  ROWS, WHOSE int64 [R]: numbers of rows, and of the adapter of each; CHANGES int64 [adapters]: addresses
of what each adapter does here, 0: nothing; X: rows X_STRIDE bytes apart, of float32 where X_SCALES is 0, else of bytes
OFFSET above the numbers that they stand for, times the row's float32 there; OUT: rows of float32 end to end."""
_STEP = 4
"""Ranks that are summed at a time; ranks are filled up to a multiple of 16."""
_BYTES = ir.VectorType(ir.IntType(8), LANES)


def _four(b: Any, first: Any, stride: Any, i: Any) -> list[Any]:
    """Register ``i`` of four rows of bfloat16 that are ``stride`` bytes apart, as float32."""
    at = b.add(first, b.mul(i, ir.Constant(I64, 2 * LANES)))
    places = [b.add(at, b.mul(stride, ir.Constant(I64, row))) for row in range(_STEP)]
    return [simd.from_bf16(b, simd.load(b, place, HALF_BFLOATS)) for place in places]


@intrinsic
def _dot_four(context, x, down, size, out):  # type: ignore[no-untyped-def]
    """out[4] float32 = x[size] float32 times four rows of ``down`` [.., size] bfloat16."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        x, down, size, out = arguments
        stride = b.mul(size, ir.Constant(I64, 2))

        def group(i, sums):  # type: ignore[no-untyped-def]
            value = simd.load(b, b.add(x, b.mul(i, ir.Constant(I64, 4 * LANES))), FLOATS)
            weights = _four(b, down, stride, i)
            return [simd.multiply_add(b, value, weight, total) for weight, total in zip(weights, sums, strict=True)]

        zero = simd.constant(FLOATS, 0.0)
        sums = simd.loop(b, b.sdiv(size, ir.Constant(I64, LANES)), [zero] * _STEP, group)
        for row, total in enumerate(sums):
            simd.store(b, simd.lanes_sum(b, total), simd.at(b, out, 4 * row))
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def _add_four(context, inner, up, size, out):  # type: ignore[no-untyped-def]
    """out[size] float32 += the sum of four rows of ``up`` [.., size] bfloat16, each times its inner[4] float32."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        inner, up, size, out = arguments
        stride = b.mul(size, ir.Constant(I64, 2))
        factors = [simd.spread(b, simd.load(b, simd.at(b, inner, 4 * row), F32)) for row in range(_STEP)]

        def group(i, _):  # type: ignore[no-untyped-def]
            place = b.add(out, b.mul(i, ir.Constant(I64, 4 * LANES)))
            total = simd.load(b, place, FLOATS)
            for factor, weight in zip(factors, _four(b, up, stride, i), strict=True):
                total = simd.multiply_add(b, factor, weight, total)
            simd.store(b, total, place)
            return []

        simd.loop(b, b.sdiv(size, ir.Constant(I64, LANES)), [], group)
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


@intrinsic
def _widen_bytes(context, source, offset, scale, target, num_groups):  # type: ignore[no-untyped-def]
    """target[16 * num_groups] float32 = (source - offset) * scale: bytes, signed where ``offset`` is 0, else not."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        source, offset, scale, target, num_groups = arguments
        # 128 less than an unsigned byte is the signed byte with the highest bit turned.
        one = b.insert_element(
            ir.Constant(_BYTES, ir.Undefined), b.trunc(offset, ir.IntType(8)), ir.Constant(simd.I32, 0)
        )
        turned = b.shuffle_vector(one, ir.Constant(_BYTES, ir.Undefined), ir.Constant(INTS, [0] * LANES))
        factor = simd.spread(b, scale)

        def group(i, _):  # type: ignore[no-untyped-def]
            bytes_ = b.xor(simd.load(b, b.add(source, b.mul(i, ir.Constant(I64, LANES))), _BYTES), turned)
            values = b.fmul(b.sitofp(b.sext(bytes_, INTS), FLOATS), factor)
            simd.store(b, values, b.add(target, b.mul(i, ir.Constant(I64, 4 * LANES))))
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), generate


@Job
def add_low_rank(job: Any) -> None:
    """A row's part of each change: down to the rank, and up again."""
    rows, whose, changes, scales = ints_at(job[ROWS]), ints_at(job[WHOSE]), ints_at(job[CHANGES]), job[X_SCALES]
    size = job[NUM_INPUTS]
    x, inner = np.empty(size, np.float32), np.empty(_STEP, np.float32)
    while True:
        item = take(job)
        if item >= job[NUM_ITEMS]:
            return
        row, change = rows[item], ints_at(changes[whose[item]])
        if changes[whose[item]] == 0:
            continue
        source = job[X] + job[X_STRIDE] * row
        if scales:
            _widen_bytes(source, job[OFFSET], floats_at(scales)[row], x.ctypes.data, size // LANES)
            source = x.ctypes.data
        for part in range(change[0]):
            start, rank, width = change[5 * part + 1], change[5 * part + 2], change[5 * part + 3]
            down, up = change[5 * part + 4], change[5 * part + 5]
            out = job[OUT] + 4 * (job[NUM_OUTPUTS] * row + start)
            for first in range(0, rank, _STEP):
                _dot_four(source, down + 2 * size * first, size, inner.ctypes.data)
                _add_four(inner.ctypes.data, up + 2 * width * first, width, out)


class Changes:
    """For some linears in order, and any adapters: where a job finds what they do."""

    def __init__(self, linears: Sequence[Linear]) -> None:
        self._linears = list(linears)
        self._by_adapter: WeakKeyDictionary[Adapter, tuple[Ints, list[Ints]]] = WeakKeyDictionary()

    def of(self, adapters: Sequence[Adapter]) -> Ints:
        """[linears, adapters] addresses, valid while the adapters are."""
        return np.ascontiguousarray(np.stack([self._addresses(adapter) for adapter in adapters], axis=1))

    def _addresses(self, adapter: Adapter) -> Ints:
        known = self._by_adapter.get(adapter)
        if known is None:
            written = [_written(adapter, linear) for linear in self._linears]
            addresses = np.array([0 if one is None else one.ctypes.data for one in written], np.int64)
            known = self._by_adapter[adapter] = addresses, [one for one in written if one is not None]
        return known[0]


def _written(adapter: Adapter, linear: Linear) -> Ints | None:
    """The number of parts, then of each: start, rank, width, and the addresses of both matrices."""
    parts = adapter.changes.get(linear)
    if parts is None:
        return None
    numbers = [len(parts)]
    for part in parts:
        numbers += [part.start, len(part.down), part.up.shape[1], part.down.data_ptr(), part.up.data_ptr()]
    return np.array(numbers, np.int64)
