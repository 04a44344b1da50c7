"""One row of numbers to whole numbers of eight bits and back, as intrinsics on addresses.

In: addresses of float32 or bfloat16 rows; out: bytes, the row's scale, and the sums of the bytes over groups of inputs.
Symmetric: the largest value is 127 and zero is zero.  A row with a NaN or an infinity gets the scale NaN, so that every
product with it is NaN and shows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.pages import MOST, TINY
from penstock.models.fast.simd import BYTES, F32, FLOATS, HALF_BFLOATS, I32, I64, INTS, LANES


def steps(b: Any, count: Any, read: Callable[[Any], Any], most: int) -> tuple[Any, Any]:
    """The scale by which the largest of ``count`` times 16 float32 is ``most``, and its reciprocal in every lane.

    The scale is NaN where one of them is, or is infinite.
    """
    zero = simd.constant(FLOATS, 0.0)

    def look(i: Any, carried: Any) -> list[Any]:
        value = read(i)
        size = simd.call(b, "llvm.fabs.v16f32", FLOATS, [value])
        return [simd.maximum(b, size, carried[0]), b.fadd(carried[1], b.fmul(value, zero))]

    peaks, poison = simd.loop(b, count, [zero, zero], look)
    peak, largest = simd.lanes_max(b, peaks), simd.constant(F32, float(most))
    scale = b.fadd(b.fdiv(peak, largest), simd.lanes_sum(b, poison))
    visible = b.fcmp_ordered(">", peak, simd.constant(F32, TINY))
    return scale, simd.spread(b, b.select(visible, b.fdiv(largest, peak), simd.constant(F32, 0.0)))


def _quantise(read: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    """``read(builder, x, i)``: the i-th 16 values of a row as float32."""

    @intrinsic
    def quantise(context, x, out, scale_at, sums, num_groups, group_steps, offset):  # type: ignore[no-untyped-def]
        """out[G * S * 16] bytes, ``offset`` above what x[G * S * 16] is of its scale, which goes to ``scale_at``.

        sums[G] float32: of the numbers of each of G groups of S registers, the offset not counted.
        """

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            x, out, scale_at, sums, num_groups, group_steps, offset = arguments
            zero = simd.constant(FLOATS, 0.0)
            scale, factor = steps(b, b.mul(num_groups, group_steps), lambda i: read(b, x, i), MOST)
            simd.store(b, scale, scale_at)
            above = simd.spread(b, b.trunc(offset, I32))

            def group(nth: Any, _: Any) -> list[Any]:
                def narrow(i: Any, carried: Any) -> list[Any]:
                    at = b.add(b.mul(nth, group_steps), i)
                    rounded = simd.call(b, "llvm.rint.v16f32", FLOATS, [b.fmul(read(b, x, at), factor)])
                    bytes_ = b.trunc(b.add(b.fptosi(rounded, INTS), above), BYTES)
                    simd.store(b, bytes_, b.add(out, b.mul(at, ir.Constant(I64, LANES))))
                    return [b.fadd(carried[0], rounded)]

                (total,) = simd.loop(b, group_steps, [zero], narrow)
                simd.store(b, simd.lanes_sum(b, total), b.add(sums, b.mul(nth, ir.Constant(I64, 4))))
                return []

            simd.loop(b, num_groups, [], group)
            return _context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return quantise  # type: ignore[no-any-return]


def _read_bf16(b: Any, x: Any, i: Any) -> Any:
    return simd.from_bf16(b, simd.load(b, b.add(x, b.mul(i, ir.Constant(I64, 2 * LANES))), HALF_BFLOATS))


def _read_float32(b: Any, x: Any, i: Any) -> Any:
    return simd.load(b, b.add(x, b.mul(i, ir.Constant(I64, 4 * LANES))), FLOATS)


quantise_bf16, quantise_float32 = _quantise(_read_bf16), _quantise(_read_float32)


@intrinsic
def widen_bytes(context, source, factor, target, num_groups):  # type: ignore[no-untyped-def]
    """target[16 * num_groups] float32 = source[16 * num_groups] int8 * factor."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        source, factor, target, num_groups = arguments
        factors = simd.spread(b, factor)

        def group(i: Any, _: Any) -> list[Any]:
            values = b.fmul(simd.load_int8(b, b.add(source, b.mul(i, ir.Constant(I64, LANES)))), factors)
            simd.store(b, values, b.add(target, b.mul(i, ir.Constant(I64, 4 * LANES))))
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), generate
