"""How long a page is, and vectors into every other number of its lines, as intrinsics on addresses.

In: addresses of a vector and of lines in which two tokens lie side by side; out: nothing, one of the two is written.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.compiled import compiled
from penstock.models.fast.pages import SCALE_BYTES
from penstock.models.fast.simd import BYTES, FLOATS, I16, I32, I64, INTS, LANES


@compiled
def page_length(page_tokens: int, head_dim: int, number_bytes: int) -> int:
    """Numbers of one head's page, scales counted in them."""
    return page_tokens * (head_dim + SCALE_BYTES if number_bytes == 1 else head_dim)


@intrinsic
def store_halves(context, source, target, num_groups, half, alone):  # type: ignore[no-untyped-def]
    """target[16 * num_groups][half] of pairs of bfloat16 = source[16 * num_groups] float32.

    Beside them a zero where ``alone`` is 1, else nothing: another thread may be writing there.
    """

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        source, target, num_groups, half, alone = arguments
        halves = ir.VectorType(I16, 2 * LANES)
        place = simd.spread(b, b.shl(b.trunc(half, I32), ir.Constant(I32, 4)))
        ours = b.shl(simd.constant(INTS, 0xFFFF), place)
        beside = b.sub(simd.constant(INTS, 0), simd.spread(b, b.trunc(alone, I32)))
        written = b.icmp_signed("!=", b.bitcast(b.or_(ours, beside), halves), simd.constant(halves, 0))

        def group(i, _):  # type: ignore[no-untyped-def]
            rounded = simd.to_bf16(b, simd.load(b, b.add(source, b.mul(i, ir.Constant(I64, 4 * LANES))), FLOATS))
            pairs = b.shl(b.zext(b.bitcast(rounded, ir.VectorType(I16, LANES)), INTS), place)
            simd.store_some(b, b.bitcast(pairs, halves), b.add(target, b.mul(i, ir.Constant(I64, 4 * LANES))), written)
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate


@intrinsic
def store_byte_halves(context, source, target, num_groups, stride, half):  # type: ignore[no-untyped-def]
    """target[num_groups, 16][half] of pairs of bytes = source[num_groups, 16] int8; ``stride`` bytes between groups.

    What is beside them stays: another thread may be writing there.
    """

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        source, target, num_groups, stride, half = arguments
        words, pairs = ir.VectorType(I16, LANES), ir.VectorType(ir.IntType(8), 2 * LANES)
        odd = b.icmp_signed("!=", half, ir.Constant(I64, 0))
        even_lanes = ir.Constant(ir.VectorType(ir.IntType(1), 2 * LANES), [1, 0] * LANES)
        odd_lanes = ir.Constant(ir.VectorType(ir.IntType(1), 2 * LANES), [0, 1] * LANES)
        written = b.select(odd, odd_lanes, even_lanes)

        def group(i, _):  # type: ignore[no-untyped-def]
            low = b.zext(simd.load(b, b.add(source, b.mul(i, ir.Constant(I64, LANES))), BYTES), words)
            moved = b.select(odd, b.shl(low, ir.Constant(words, [8] * LANES)), low)
            simd.store_some(b, b.bitcast(moved, pairs), b.add(target, b.mul(i, stride)), written)
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 5), generate
