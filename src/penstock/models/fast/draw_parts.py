"""Vector loops over the weights that tokens are drawn by, as intrinsics on addresses.

In: addresses of float32 rows, counts of registers of 16; out: rows, sums in float64, counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.cpu import has
from penstock.models.fast.simd import FLOATS, I16, I32, I64, LANES

STEPS = tuple(2.0**-power for power in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 16))
"""Weights between which :func:`masses` and :func:`counts` tell how much lies; the best token's weight is 1."""

_F64 = ir.DoubleType()
_DOUBLES = ir.VectorType(_F64, LANES)
_REGISTER_BYTES = 4 * LANES


def _register(b: Any, base: Any, group: Any) -> Any:
    return b.add(base, b.mul(group, ir.Constant(I64, _REGISTER_BYTES)))


def _sum(b: Any, lanes: Any) -> Any:
    """Of 16 float64, in any order that stays the same."""
    name = "llvm.vector.reduce.fadd.v16f64"
    function = b.module.globals.get(name)
    if function is None:
        function = ir.Function(b.module, ir.FunctionType(_F64, [_F64, _DOUBLES]), name)
    return b.call(function, [ir.Constant(_F64, 0.0), lanes], fastmath=("reassoc",))


@intrinsic
def weigh(context, x, peak, factor, target, num_groups):  # type: ignore[no-untyped-def]
    """target[16 * num_groups] = e to the power of (x - peak) * factor, all float32; their sum.

    What is below e to the power of -87, and what is no number, weighs nothing.
    """

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        x, peak, factor, target, num_groups = arguments
        peaks, factors = simd.spread(b, peak), simd.spread(b, factor)
        nothing, lowest = simd.constant(FLOATS, 0.0), simd.constant(FLOATS, -87.0)

        def group(i, carried):  # type: ignore[no-untyped-def]
            power = b.fmul(b.fsub(simd.load(b, _register(b, x, i), FLOATS), peaks), factors)
            weights = b.select(b.fcmp_ordered(">", power, lowest), simd.exp(b, power), nothing)
            simd.store(b, weights, _register(b, target, i))
            return [b.fadd(carried[0], b.fpext(weights, _DOUBLES))]

        (sums,) = simd.loop(b, num_groups, [simd.constant(_DOUBLES, 0.0)], group)
        return _sum(b, sums)

    kinds = types.int64, types.float32, types.float32, types.int64, types.int64
    return types.float64(*kinds), generate


@intrinsic
def cut(context, weights, least, num_groups):  # type: ignore[no-untyped-def]
    """Leave 0 of those of weights[16 * num_groups] float32 that are below ``least``; the sum of the others."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        weights, least, num_groups = arguments
        edge, nothing = simd.spread(b, least), simd.constant(FLOATS, 0.0)

        def group(i, carried):  # type: ignore[no-untyped-def]
            place = _register(b, weights, i)
            values = simd.load(b, place, FLOATS)
            kept = b.select(b.fcmp_ordered(">=", values, edge), values, nothing)
            simd.store(b, kept, place)
            return [b.fadd(carried[0], b.fpext(kept, _DOUBLES))]

        (sums,) = simd.loop(b, num_groups, [simd.constant(_DOUBLES, 0.0)], group)
        return _sum(b, sums)

    return types.float64(types.int64, types.float32, types.int64), generate


def _measures(measure: Callable[[Any], Any]) -> Callable[..., Any]:
    @intrinsic
    def measures(context, weights, num_groups, totals):  # type: ignore[no-untyped-def]
        """totals[s] += what weights[16 * num_groups] of STEPS[s] or more measure: float32, totals float64.

        A few groups at a time, since lanes are summed in float32.
        """

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            weights, num_groups, totals = arguments
            nothing = simd.constant(FLOATS, 0.0)

            def group(i, carried):  # type: ignore[no-untyped-def]
                values = simd.load(b, _register(b, weights, i), FLOATS)
                sums = []
                for step, total in zip(STEPS, carried, strict=True):
                    flags = b.fcmp_ordered(">=", values, simd.constant(FLOATS, step))
                    sums.append(b.fadd(total, b.select(flags, measure(values), nothing)))
                return sums

            sums = simd.loop(b, num_groups, [nothing] * len(STEPS), group)
            for step, lanes in enumerate(sums):
                place = simd.at(b, totals, 8 * step)
                total = b.fadd(simd.load(b, place, _F64), _sum(b, b.fpext(lanes, _DOUBLES)))
                simd.store(b, total, place)
            return _context.get_dummy_value()

        return types.void(*[types.int64] * 3), generate

    return measures  # type: ignore[no-any-return]


masses = _measures(lambda values: values)
counts = _measures(lambda values: simd.constant(FLOATS, 1.0))


@intrinsic
def pick(context, weights, least, below, target, num_groups):  # type: ignore[no-untyped-def]
    """Those of weights[16 * num_groups] float32 in ``least`` .. ``below`` to ``target``, in order; how many.

    Up to 15 numbers behind them are overwritten.  ``target`` may be ``weights``.
    """

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        weights, least, below, target, num_groups = arguments
        low, high = simd.spread(b, least), simd.spread(b, below)

        def group(i, carried):  # type: ignore[no-untyped-def]
            values = simd.load(b, _register(b, weights, i), FLOATS)
            flags = b.and_(b.fcmp_ordered(">=", values, low), b.fcmp_ordered("<", values, high))
            return [_append(b, values, flags, target, carried[0])]

        (num_picked,) = simd.loop(b, num_groups, [ir.Constant(I64, 0)], group)
        return num_picked

    kinds = types.int64, types.float32, types.float32, types.int64, types.int64
    return types.int64(*kinds), generate


def _append(b: Any, values: Any, flags: Any, target: Any, num_picked: Any) -> Any:
    """Those of 16 values that have a flag, behind ``num_picked`` others; how many there are then."""
    if has("avx512f"):
        nothing = simd.constant(FLOATS, 0.0)
        packed = simd.call(b, "llvm.x86.avx512.mask.compress.v16f32", FLOATS, [values, nothing, flags])
        simd.store(b, packed, b.add(target, b.mul(num_picked, ir.Constant(I64, 4))))
        count = simd.call(b, "llvm.ctpop.i16", I16, [b.bitcast(flags, I16)])
        return b.add(num_picked, b.zext(count, I64))
    for lane in range(LANES):
        place, number = b.add(target, b.mul(num_picked, ir.Constant(I64, 4))), ir.Constant(I32, lane)
        simd.store(b, b.extract_element(values, number), place)
        num_picked = b.add(num_picked, b.zext(b.extract_element(flags, number), I64))
    return num_picked
