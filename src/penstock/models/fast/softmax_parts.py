"""The softmax of paged attention between its two products, as intrinsics on addresses.

In: scores of one query and its state so far; out: shares in their place, and what its sums so far shrink by.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.byte_parts import steps
from penstock.models.fast.simd import F32, FLOATS, I16, I32, I64, INTS, LANES, LINE_BYTES

HIDDEN = -1e30
"""A score that nothing is: less than any, and still a number."""
LOG2_E = 1.4426950408889634
_ZERO = simd.constant(FLOATS, 0.0)
_MOST_WORD = 32767


@intrinsic
def cap_scores(context, scores, num_tiles, cap):  # type: ignore[no-untyped-def]
    """scores[num_tiles][16] float32, in units of ln 2, become cap * tanh(score / cap)."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        scores, num_tiles, cap = arguments
        caps = simd.spread(b, b.fmul(cap, simd.constant(F32, LOG2_E)))

        def tile(i: Any, _: Any) -> list[Any]:
            address = b.add(scores, b.mul(i, ir.Constant(I64, LINE_BYTES)))
            capped = simd.tanh(b, b.fdiv(simd.load(b, address, FLOATS), caps))
            simd.store(b, b.fmul(caps, capped), address)
            return []

        simd.loop(b, num_tiles, [], tile)
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64, types.float32), generate


@intrinsic
def absorb(context, scores, state, num_tiles, first, last, ahead):  # type: ignore[no-untyped-def]
    """Some keys' scores into one query's running softmax (arXiv 2112.05682); what its sums so far shrink by.

    scores[num_tiles][16] float32, in units of ln 2, become shares; state: the query's peak and total, float32.
    Keys before ``first`` or behind ``last`` of them are hidden, whatever their scores.
    ``ahead``: two lines per tile are fetched from there, so that memory has something to do meanwhile.
    """

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        scores, state, num_tiles, first, last, ahead = arguments
        lanes = ir.Constant(INTS, list(range(LANES)))
        hidden = simd.constant(FLOATS, HIDDEN)
        first, last = (simd.spread(b, b.trunc(edge, I32)) for edge in (first, last))

        def visible(i: Any) -> Any:
            places = b.add(simd.spread(b, b.trunc(b.mul(i, ir.Constant(I64, LANES)), I32)), lanes)
            return b.and_(b.icmp_signed(">=", places, first), b.icmp_signed("<=", places, last))

        def fetch(i: Any, half: int) -> None:
            line = b.add(b.add(i, i), ir.Constant(I64, half))
            simd.prefetch_later(b, b.add(ahead, b.mul(line, ir.Constant(I64, LINE_BYTES))))

        def highest(i, carried):  # type: ignore[no-untyped-def]
            fetch(i, 0)
            score = simd.load(b, b.add(scores, b.mul(i, ir.Constant(I64, LINE_BYTES))), FLOATS)
            return [simd.maximum(b, b.select(visible(i), score, hidden), carried[0])]

        (peaks,) = simd.loop(b, num_tiles, [hidden], highest)
        before = simd.load(b, state, F32)
        found = simd.lanes_max(b, peaks)
        peak = b.select(b.fcmp_ordered(">", found, before), found, before)
        peak_lanes = simd.spread(b, peak)

        def share(i, carried):  # type: ignore[no-untyped-def]
            fetch(i, 1)
            address = b.add(scores, b.mul(i, ir.Constant(I64, LINE_BYTES)))
            share = simd.exp2(b, b.fsub(simd.load(b, address, FLOATS), peak_lanes))
            share = b.select(visible(i), share, simd.constant(FLOATS, 0.0))
            simd.store(b, share, address)
            return [b.fadd(carried[0], share)]

        (sums,) = simd.loop(b, num_tiles, [simd.constant(FLOATS, 0.0)], share)
        shrink = b.extract_element(simd.exp2(b, simd.spread(b, b.fsub(before, peak))), ir.Constant(I32, 0))
        total_at = b.add(state, ir.Constant(I64, 4))
        total = b.fadd(b.fmul(simd.load(b, total_at, F32), shrink), simd.lanes_sum(b, sums))
        simd.store(b, peak, state)
        simd.store(b, total, total_at)
        return b.select(b.fcmp_ordered("==", before, peak), simd.constant(F32, 1.0), shrink)

    return types.float32(*[types.int64] * 6), generate


@intrinsic
def times_scales(context, scores, num_tiles, scales, scale):  # type: ignore[no-untyped-def]
    """scores[num_tiles][16] *= scales[num_tiles][16] * scale, float32; a zero stays one, whatever its scale is."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        scores, num_tiles, scales, scale = arguments
        of_query = simd.spread(b, scale)

        def tile(i: Any, _: Any) -> list[Any]:
            offset = b.mul(i, ir.Constant(I64, LINE_BYTES))
            score = simd.load(b, b.add(scores, offset), FLOATS)
            factor = b.fmul(simd.load(b, b.add(scales, offset), FLOATS), of_query)
            kept = b.select(b.fcmp_ordered("==", score, _ZERO), _ZERO, b.fmul(score, factor))
            simd.store(b, kept, b.add(scores, offset))
            return []

        simd.loop(b, num_tiles, [], tile)
        return _context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.float32), generate


@intrinsic
def to_words(context, values, num_groups):  # type: ignore[no-untyped-def]
    """values[16 * num_groups] float32 become int16 in the first half of their place; their scale as of ``steps``."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        values, num_groups = arguments

        def group(i: Any) -> Any:
            return simd.load(b, b.add(values, b.mul(i, ir.Constant(I64, LINE_BYTES))), FLOATS)

        scale, factors = steps(b, num_groups, group, _MOST_WORD)

        def narrow(i: Any, _: Any) -> list[Any]:
            whole = simd.call(b, "llvm.rint.v16f32", FLOATS, [b.fmul(group(i), factors)])
            words = b.trunc(b.fptosi(whole, INTS), ir.VectorType(I16, LANES))
            simd.store(b, words, b.add(values, b.mul(i, ir.Constant(I64, LINE_BYTES // 2))))
            return []

        simd.loop(b, num_groups, [], narrow)
        return scale

    return types.float32(types.int64, types.int64), generate
