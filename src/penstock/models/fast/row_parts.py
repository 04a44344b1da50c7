"""Vector loops over one row of numbers, as intrinsics on addresses.

In: addresses of float32 and bfloat16 rows, whose lengths are multiples of 16; out: rows.  float32 inside, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.simd import F32, FLOATS, HALF_BFLOATS, I32, I64, INTS, LANES

_FLOAT_BYTES, _BF16_BYTES = 4 * LANES, 2 * LANES
Gate = Callable[[Any, Any], Any]


def _floats_of(b: Any, base: Any, group: Any) -> Any:
    return b.add(base, b.mul(group, ir.Constant(I64, _FLOAT_BYTES)))


def _bf16_of(b: Any, base: Any, group: Any) -> Any:
    return b.add(base, b.mul(group, ir.Constant(I64, _BF16_BYTES)))


@intrinsic
def widen(context, source, target, num_groups):  # type: ignore[no-untyped-def]
    """target[16 * num_groups] float32 = source[16 * num_groups] bfloat16."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        source, target, num_groups = arguments

        def group(i, _):  # type: ignore[no-untyped-def]
            values = simd.from_bf16(b, simd.load(b, _bf16_of(b, source, i), HALF_BFLOATS))
            simd.store(b, values, _floats_of(b, target, i))
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def widen_scaled(context, source, factor, target, num_groups):  # type: ignore[no-untyped-def]
    """target[16 * num_groups] float32 = source[16 * num_groups] bfloat16 * factor."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        source, factor, target, num_groups = arguments
        factors = simd.spread(b, factor)

        def group(i, _):  # type: ignore[no-untyped-def]
            values = simd.from_bf16(b, simd.load(b, _bf16_of(b, source, i), HALF_BFLOATS))
            simd.store(b, b.fmul(values, factors), _floats_of(b, target, i))
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), generate


@intrinsic
def copy(context, source, target, num_groups):  # type: ignore[no-untyped-def]
    """target[16 * num_groups] = source[16 * num_groups], both float32."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        source, target, num_groups = arguments

        def group(i, _):  # type: ignore[no-untyped-def]
            simd.store(b, simd.load(b, _floats_of(b, source, i), FLOATS), _floats_of(b, target, i))
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 3), generate


@intrinsic
def add_squares(context, x, change, factor, num_groups):  # type: ignore[no-untyped-def]
    """x[16 * num_groups] += change * factor, both float32; the sum of the squares of what x is then."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        x, change, factor, num_groups = arguments
        factors = simd.spread(b, factor)

        def group(i, carried):  # type: ignore[no-untyped-def]
            added = b.fmul(simd.load(b, _floats_of(b, change, i), FLOATS), factors)
            total = b.fadd(simd.load(b, _floats_of(b, x, i), FLOATS), added)
            simd.store(b, total, _floats_of(b, x, i))
            return [b.fadd(carried[0], b.fmul(total, total))]

        (sums,) = simd.loop(b, num_groups, [simd.constant(FLOATS, 0.0)], group)
        return simd.lanes_sum(b, sums)

    return types.float32(types.int64, types.int64, types.float32, types.int64), generate


@intrinsic
def squares(context, x, num_groups):  # type: ignore[no-untyped-def]
    """The sum of the squares of x[16 * num_groups] float32."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        x, num_groups = arguments

        def group(i, carried):  # type: ignore[no-untyped-def]
            values = simd.load(b, _floats_of(b, x, i), FLOATS)
            return [b.fadd(carried[0], b.fmul(values, values))]

        (sums,) = simd.loop(b, num_groups, [simd.constant(FLOATS, 0.0)], group)
        return simd.lanes_sum(b, sums)

    return types.float32(types.int64, types.int64), generate


@intrinsic
def scaled(context, x, weight, factor, target, num_groups):  # type: ignore[no-untyped-def]
    """target[16 * num_groups] = x * factor * weight, all float32."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        x, weight, factor, target, num_groups = arguments
        factors = simd.spread(b, factor)

        def group(i, _):  # type: ignore[no-untyped-def]
            values = b.fmul(simd.load(b, _floats_of(b, x, i), FLOATS), factors)
            values = b.fmul(values, simd.load(b, _floats_of(b, weight, i), FLOATS))
            simd.store(b, values, _floats_of(b, target, i))
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32, types.int64, types.int64), generate


@intrinsic
def turn(context, head, cos, sin, num_groups):  # type: ignore[no-untyped-def]
    """Dimension i of head[32 * num_groups] float32 and the one half of them further, turned by cos[i] and sin[i]."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        head, cos, sin, num_groups = arguments
        half = b.mul(num_groups, ir.Constant(I64, _FLOAT_BYTES))

        def group(i, _):  # type: ignore[no-untyped-def]
            at = _floats_of(b, head, i)
            first, second = simd.load(b, at, FLOATS), simd.load(b, b.add(at, half), FLOATS)
            cosines, sines = simd.load(b, _floats_of(b, cos, i), FLOATS), simd.load(b, _floats_of(b, sin, i), FLOATS)
            simd.store(b, b.fsub(b.fmul(first, cosines), b.fmul(second, sines)), at)
            simd.store(b, b.fadd(b.fmul(second, cosines), b.fmul(first, sines)), b.add(at, half))
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate


def _gated(activation: Gate) -> Callable[..., Any]:
    @intrinsic
    def gated(context, gate, up, target, num_groups):  # type: ignore[no-untyped-def]
        """target[16 * num_groups] = activation(gate) * up, all float32; target may be one of the two."""

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            gate, up, target, num_groups = arguments

            def group(i, _):  # type: ignore[no-untyped-def]
                values = activation(b, simd.load(b, _floats_of(b, gate, i), FLOATS))
                values = b.fmul(values, simd.load(b, _floats_of(b, up, i), FLOATS))
                simd.store(b, values, _floats_of(b, target, i))
                return []

            simd.loop(b, num_groups, [], group)
            return _context.get_dummy_value()

        return types.void(*[types.int64] * 4), generate

    return gated  # type: ignore[no-any-return]


def _silu(b: Any, x: Any) -> Any:
    one = simd.constant(FLOATS, 1.0)
    return b.fdiv(x, b.fadd(one, simd.exp(b, b.fneg(x))))


def _gelu_tanh(b: Any, x: Any) -> Any:
    """x * (1 + tanh(y)) / 2 is x over 1 + e to the power of -2 y, which keeps its digits where tanh nears -1."""
    cube = b.fmul(b.fmul(x, x), b.fmul(x, simd.constant(FLOATS, 0.044715)))
    power = simd.exp(b, b.fmul(b.fadd(x, cube), simd.constant(FLOATS, -2 * 0.7978845608028654)))
    return b.fdiv(x, b.fadd(simd.constant(FLOATS, 1.0), power))


def _gelu(b: Any, x: Any) -> Any:
    """x times the normal distribution's share below x, by Abramowitz and Stegun 7.1.26: to 1e-7.

    ``tail`` is half of what is beyond |x| on both sides, so that it keeps its digits where it is small.
    """
    size = simd.call(b, "llvm.fabs.v16f32", FLOATS, [x])
    one = simd.constant(FLOATS, 1.0)
    t = b.fdiv(one, simd.multiply_add(b, size, simd.constant(FLOATS, 0.3275911 * 0.7071067811865476), one))
    power = simd.constant(FLOATS, 1.061405429)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        power = simd.multiply_add(b, power, t, simd.constant(FLOATS, factor))
    bell = simd.exp(b, b.fmul(b.fmul(x, x), simd.constant(FLOATS, -0.5)))
    tail = b.fmul(b.fmul(b.fmul(power, t), bell), simd.constant(FLOATS, 0.5))
    below = b.select(b.fcmp_ordered("<", x, simd.constant(FLOATS, 0.0)), tail, b.fsub(one, tail))
    return b.fmul(x, below)


silu, gelu, gelu_tanh = _gated(_silu), _gated(_gelu), _gated(_gelu_tanh)


@intrinsic
def arg_max(context, x, num_groups):  # type: ignore[no-untyped-def]
    """Where the first of the largest of x[16 * num_groups] float32 is; NaN is nowhere."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        x, num_groups = arguments

        def group(i, carried):  # type: ignore[no-untyped-def]
            best, places = carried
            values = simd.load(b, _floats_of(b, x, i), FLOATS)
            better = b.fcmp_ordered(">", values, best)
            here = simd.spread(b, b.trunc(i, I32))
            return [b.select(better, values, best), b.select(better, here, places)]

        lowest, zeros = simd.constant(FLOATS, float("-inf")), simd.constant(INTS, 0)
        best, places = simd.loop(b, num_groups, [lowest, zeros], group)
        top = simd.spread(b, simd.lanes_max(b, best))
        lanes = ir.Constant(INTS, list(range(LANES)))
        places = b.add(b.mul(places, simd.constant(INTS, LANES)), lanes)
        none = simd.constant(INTS, 2**31 - 1)
        candidates = b.select(b.fcmp_ordered("==", best, top), places, none)
        first = simd.call(b, "llvm.vector.reduce.smin.v16i32", I32, [candidates])
        return b.sext(first, I64)

    return types.int64(types.int64, types.int64), generate


def _pointer(kind: Any, pointed: Any) -> Callable[..., Any]:
    @intrinsic
    def at(context, address):  # type: ignore[no-untyped-def]
        """The address as a pointer that numba.carray takes."""

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            return b.inttoptr(arguments[0], pointed.as_pointer())

        return types.CPointer(kind)(types.int64), generate

    return at  # type: ignore[no-any-return]


floats_at = _pointer(types.float32, F32)
bytes_at = _pointer(types.int8, ir.IntType(8))
bits_at = _pointer(types.uint16, ir.IntType(16))
pairs_at = _pointer(types.uint32, I32)
ints_at = _pointer(types.int64, I64)
doubles_at = _pointer(types.float64, ir.DoubleType())


@intrinsic
def as_float(context, bits):  # type: ignore[no-untyped-def]
    """The float32 whose bits are the lower half of an int64: how a job's arguments hold one."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        return b.bitcast(b.trunc(arguments[0], I32), F32)

    return types.float32(types.int64), generate
