"""The inner products of paged attention in bfloat16, as intrinsics on addresses.

In: addresses of one page's keys or values, of queries, scores and running sums; out: those sums, changed in place.
Layouts: a page's keys are [S/16][D/2][16][2] bfloat16, so that one register holds two dimensions of 16 keys and no sum
runs across lanes; its values are [S/2][D][2], so that one holds two tokens' 16 dimensions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.simd import BFLOATS, F32, FLOATS, I32, I64, INTS, LANES

LINE_BYTES = 64
HIDDEN = -1e30
"""A score that nothing is: less than any, and still a number."""

Intrinsic = Callable[..., Any]


def _score(num_queries: int, num_sums: int) -> Intrinsic:
    """16 keys against ``num_queries`` queries; each score in ``num_sums`` partial sums, to hide a sum's latency."""

    @intrinsic
    def score(context, keys, queries, query_bytes, scores, score_bytes, num_pairs, ahead):  # type: ignore[no-untyped-def]
        """keys [D/2][16][2]; queries [.][D] bf16, ``query_bytes`` apart; scores[.][16] float32, ``score_bytes`` apart.

        ``num_pairs``: D / 2, a multiple of 4.  ``ahead``: as many bytes as the keys have are fetched from there.
        """

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            keys, queries, query_bytes, scores, score_bytes, num_pairs, ahead = arguments
            rows = [b.add(queries, b.mul(query_bytes, ir.Constant(I64, q))) for q in range(num_queries)]

            def some_pairs(i, sums):  # type: ignore[no-untyped-def]
                at_key, at_query = (
                    b.mul(i, ir.Constant(I64, num_sums * LINE_BYTES)),
                    b.mul(i, ir.Constant(I64, num_sums * 4)),
                )
                sums = list(sums)
                for part in range(num_sums):
                    line = b.add(at_key, ir.Constant(I64, part * LINE_BYTES))
                    simd.prefetch(b, b.add(ahead, line))
                    pair = simd.load(b, b.add(keys, line), BFLOATS)
                    for q, row in enumerate(rows):
                        own = simd.spread_pair(b, b.add(row, b.add(at_query, ir.Constant(I64, part * 4))))
                        sums[q * num_sums + part] = simd.dot_bf16(b, sums[q * num_sums + part], pair, own)
                return sums

            zeros = [simd.constant(FLOATS, 0.0)] * (num_queries * num_sums)
            sums = simd.loop(b, b.udiv(num_pairs, ir.Constant(I64, num_sums)), zeros, some_pairs)
            for q in range(num_queries):
                total = sums[q * num_sums]
                for part in range(1, num_sums):
                    total = b.fadd(total, sums[q * num_sums + part])
                simd.store(b, total, b.add(scores, b.mul(score_bytes, ir.Constant(I64, q))))
            return _context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return score  # type: ignore[no-any-return]


score_1, score_2, score_4, score_8 = _score(1, 4), _score(2, 2), _score(4, 2), _score(8, 1)


@intrinsic
def absorb(context, scores, shares, state, num_tiles, scale, cap, first, last):  # type: ignore[no-untyped-def]
    """A page's scores into one query's running softmax (arXiv 2112.05682); what its sums so far shrink by.

    scores[num_tiles][16] float32; shares[num_tiles][16] bfloat16, written; state: the query's peak and total, float32.
    Keys before ``first`` or behind ``last`` of the page are hidden, whatever their scores.  ``cap`` 0: none.
    The total sums what was rounded, so that numerator and denominator agree.
    """

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        scores, shares, state, num_tiles, scale, cap, first, last = arguments
        lanes = ir.Constant(INTS, list(range(LANES)))
        hidden = simd.constant(FLOATS, HIDDEN)
        first, last = (simd.spread(b, b.trunc(edge, I32)) for edge in (first, last))
        scale, caps = simd.spread(b, scale), simd.spread(b, cap)

        def visible(i: Any) -> Any:
            places = b.add(simd.spread(b, b.trunc(b.mul(i, ir.Constant(I64, LANES)), I32)), lanes)
            return b.and_(b.icmp_signed(">=", places, first), b.icmp_signed("<=", places, last))

        def highest(i, carried):  # type: ignore[no-untyped-def]
            address = b.add(scores, b.mul(i, ir.Constant(I64, LINE_BYTES)))
            score = b.fmul(simd.load(b, address, FLOATS), scale)
            with b.if_then(b.fcmp_ordered("!=", cap, simd.constant(F32, 0.0))):
                simd.store(b, b.fmul(caps, simd.tanh(b, b.fdiv(score, caps))), address)
            with b.if_then(b.fcmp_ordered("==", cap, simd.constant(F32, 0.0))):
                simd.store(b, score, address)
            score = b.select(visible(i), simd.load(b, address, FLOATS), hidden)
            return [simd.maximum(b, score, carried[0])]

        (peaks,) = simd.loop(b, num_tiles, [hidden], highest)
        before = simd.load(b, state, F32)
        found = simd.lanes_max(b, peaks)
        peak = b.select(b.fcmp_ordered(">", found, before), found, before)
        peak_lanes = simd.spread(b, peak)

        def share(i, carried):  # type: ignore[no-untyped-def]
            score = simd.load(b, b.add(scores, b.mul(i, ir.Constant(I64, LINE_BYTES))), FLOATS)
            share = simd.exp(b, b.fsub(score, peak_lanes))
            share = simd.to_bf16(b, b.select(visible(i), share, simd.constant(FLOATS, 0.0)))
            simd.store(b, share, b.add(shares, b.mul(i, ir.Constant(I64, LINE_BYTES // 2))))
            return [b.fadd(carried[0], simd.from_bf16(b, share))]

        (sums,) = simd.loop(b, num_tiles, [simd.constant(FLOATS, 0.0)], share)
        shrink = b.extract_element(simd.exp(b, simd.spread(b, b.fsub(before, peak))), ir.Constant(I32, 0))
        total_at = b.add(state, ir.Constant(I64, 4))
        total = b.fadd(b.fmul(simd.load(b, total_at, F32), shrink), simd.lanes_sum(b, sums))
        simd.store(b, peak, state)
        simd.store(b, total, total_at)
        return b.select(b.fcmp_ordered("==", before, peak), simd.constant(F32, 1.0), shrink)

    arguments = [types.int64] * 4 + [types.float32] * 2 + [types.int64] * 2
    return types.float32(*arguments), generate


def _mix(num_queries: int, num_groups: int) -> Intrinsic:
    """Shares of ``num_queries`` queries times ``num_groups`` times 16 dimensions of values."""

    @intrinsic
    def mix(context, values, row_bytes, shares, share_bytes, mixed, mixed_bytes, num_pairs, ahead):  # type: ignore[no-untyped-def]
        """mixed[.][16 * groups] float32 += shares[.][num_pairs][2] bf16 @ values [num_pairs][16 * groups][2] bf16.

        Rows of the three lie ``row_bytes``, ``share_bytes`` and ``mixed_bytes`` apart.  ``ahead``: as ``score`` has it.
        """

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            values, row_bytes, shares, share_bytes, mixed, mixed_bytes, num_pairs, ahead = arguments
            rows = [b.add(shares, b.mul(share_bytes, ir.Constant(I64, q))) for q in range(num_queries)]
            places = [
                b.add(b.add(mixed, b.mul(mixed_bytes, ir.Constant(I64, q))), ir.Constant(I64, g * LINE_BYTES))
                for q in range(num_queries)
                for g in range(num_groups)
            ]

            def one_pair(i, sums):  # type: ignore[no-untyped-def]
                row, at_share = b.mul(i, row_bytes), b.mul(i, ir.Constant(I64, 4))
                sums = list(sums)
                own = [simd.spread_pair(b, b.add(share, at_share)) for share in rows]
                for g in range(num_groups):
                    line = b.add(row, ir.Constant(I64, g * LINE_BYTES))
                    simd.prefetch(b, b.add(ahead, line))
                    value = simd.load(b, b.add(values, line), BFLOATS)
                    for q in range(num_queries):
                        sums[q * num_groups + g] = simd.dot_bf16(b, sums[q * num_groups + g], value, own[q])
                return sums

            sums = simd.loop(b, num_pairs, [simd.load(b, place, FLOATS) for place in places], one_pair)
            for place, total in zip(places, sums, strict=True):
                simd.store(b, total, place)
            return _context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return mix  # type: ignore[no-any-return]


mix_1_1, mix_1_2, mix_1_4 = _mix(1, 1), _mix(1, 2), _mix(1, 4)
mix_2_1, mix_2_2, mix_2_4 = _mix(2, 1), _mix(2, 2), _mix(2, 4)
mix_4_1, mix_4_2, mix_4_4 = _mix(4, 1), _mix(4, 2), _mix(4, 4)


@intrinsic
def take_next(context, counter):  # type: ignore[no-untyped-def]
    """The number at the address ``counter`` (int64), one more for whoever asks next; threads share it."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        pointer = b.inttoptr(arguments[0], I64.as_pointer())
        return b.atomic_rmw("add", pointer, ir.Constant(I64, 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def narrow(context, source, factor, target, num_groups):  # type: ignore[no-untyped-def]
    """target[16 * num_groups] bfloat16 = source[16 * num_groups] float32 * factor."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        source, factor, target, num_groups = arguments
        factors = simd.spread(b, factor)

        def group(i, _):  # type: ignore[no-untyped-def]
            values = simd.load(b, b.add(source, b.mul(i, ir.Constant(I64, LINE_BYTES))), FLOATS)
            rounded = simd.to_bf16(b, b.fmul(values, factors))
            simd.store(b, rounded, b.add(target, b.mul(i, ir.Constant(I64, LINE_BYTES // 2))))
            return []

        simd.loop(b, num_groups, [], group)
        return _context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64, types.int64), generate
