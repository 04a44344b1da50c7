"""Weights in floating point to four bits, group by group of inputs.

In: rows as numpy arrays, finite; out: numbers, scales and zero points, the numbers as a weight's lines have them.
Vectors of LLVM's own kind: any CPU has them, in one register or in two.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.compiled import compiled
from penstock.models.fast.simd import F32, FLOATS, I64, INTS, LANES

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

LINE_INPUTS = 8
"""Inputs of one line of a weight: the low and the high halves of its four bytes."""
_BYTES, _HALF = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(8), LANES // 2)
_LOW, _HIGH = (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)
"""Which of 16 inputs are in the low and which in the high halves of two lines."""


@intrinsic
def _span(context, values, num_registers):  # type: ignore[no-untyped-def]
    """The lowest and the highest of values[16 * num_registers] float32 and zero."""

    def generate(_context, b, signature, arguments):  # type: ignore[no-untyped-def]
        values, num_registers = arguments
        zero = simd.constant(FLOATS, 0.0)

        def look(i: Any, carried: Any) -> list[Any]:
            value = simd.load(b, b.add(values, b.mul(i, ir.Constant(I64, 4 * LANES))), FLOATS)
            lower = b.select(b.fcmp_ordered("<", value, carried[0]), value, carried[0])
            return [lower, simd.maximum(b, value, carried[1])]

        low, high = simd.loop(b, num_registers, [zero, zero], look)
        lowest = simd.call(b, "llvm.vector.reduce.fmin.v16f32", F32, [low])
        return _context.make_tuple(b, signature.return_type, [lowest, simd.lanes_max(b, high)])

    return types.UniTuple(types.float32, 2)(types.int64, types.int64), generate


@intrinsic
def _narrow(context, values, factor, above, lines, num_registers):  # type: ignore[no-untyped-def]
    """lines[8 * num_registers] bytes of values[16 * num_registers] float32 * factor + above, whole, within 0 .. 15."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        values, factor, above, lines, num_registers = arguments
        factors, added = simd.spread(b, factor), simd.spread(b, above)
        most, none = simd.constant(INTS, 15), simd.constant(INTS, 0)
        low, high = (ir.Constant(ir.VectorType(ir.IntType(32), 8), list(places)) for places in (_LOW, _HIGH))

        def narrow(i: Any, _: Any) -> list[Any]:
            value = simd.load(b, b.add(values, b.mul(i, ir.Constant(I64, 4 * LANES))), FLOATS)
            whole = b.fptosi(b.fadd(b.fmul(value, factors), added), INTS)
            whole = b.select(b.icmp_signed("<", whole, none), none, whole)
            numbers = b.trunc(b.select(b.icmp_signed(">", whole, most), most, whole), _BYTES)
            halves = [b.shuffle_vector(numbers, numbers, places) for places in (low, high)]
            line = b.or_(halves[0], b.shl(halves[1], simd.constant(_HALF, 4)))
            simd.store(b, line, b.add(lines, b.mul(i, ir.Constant(I64, LANES // 2))))
            return []

        simd.loop(b, num_registers, [], narrow)
        return _context.get_dummy_value()

    return types.void(types.int64, types.float32, types.float32, types.int64, types.int64), generate


@compiled
def quantise_groups(rows: Floats, lines: Bytes, scales: Floats, zeros: Bytes) -> None:
    """rows[R, I] to lines[R, I / 2] of numbers 0 .. 15, scales and zeros [R, G], for groups of I / G inputs.

    I / G is a multiple of 16.  Zero is always among the numbers, so that what is filled up with zeros stays so; a group
    too small to divide by is all zeros.
    """
    num_rows, num_groups = scales.shape
    group = rows.shape[1] // num_groups
    for row in range(num_rows):
        for nth in range(num_groups):
            values = rows.ctypes.data + 4 * (row * rows.shape[1] + nth * group)
            low, high = _span(values, group // 16)
            scale = (high - low) / np.float32(15.0)
            factor = np.float32(1.0) / scale if scale > np.float32(1e-30) else np.float32(0.0)
            zero = np.floor(np.float32(0.5) - low * factor)
            scales[row, nth] = scale
            zeros[row, nth] = np.uint8(zero)
            at = lines.ctypes.data + row * lines.shape[1] + nth * group // 2
            _narrow(values, factor, zero + np.float32(0.5), at, group // 16)
