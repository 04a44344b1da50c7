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
from penstock.models.fast.simd import F32, FLOATS, I32, I64, INTS, LANES

LINE_BYTES = 64
HIDDEN = -1e30
"""A score that nothing is: less than any, and still a number."""
LOG2_E = 1.4426950408889634
_ZERO = simd.constant(FLOATS, 0.0)

Intrinsic = Callable[..., Any]


def _add_products(b: Any, source: Any, lines: Any, ahead: Any, rows: Any, i: Any, sums: Any) -> list[Any]:
    """sums [rows][lines][1 or 2] plus pairs of bfloat16 in ``lines`` of ``source``, times the pair ``i`` of each row.

    By multiply-adds in float32: the instruction for products of bfloat16 takes some four times as long as one of them.
    The same lines are fetched from ``ahead``.
    """
    totals, apart = [*sums], len(sums) // (len(rows) * len(lines))
    pairs = []
    for line in lines:
        _fetch(b, b.add(ahead, line))
        pairs.append(simd.halves(b, simd.load(b, b.add(source, line), INTS)))
    for q, row in enumerate(rows):
        for half in range(2):
            place = b.add(row, b.add(b.mul(i, ir.Constant(I64, 8)), ir.Constant(I64, 4 * half)))
            own = simd.spread(b, simd.load(b, place, F32))
            for nth, pair in enumerate(pairs):
                to = (q * len(lines) + nth) * apart + half % apart
                totals[to] = simd.multiply_add(b, pair[half], own, totals[to])
    return totals


def _summed(b: Any, num_pairs: Any, before: list[Any], one_pair: Callable[[Any, Any], list[Any]]) -> list[Any]:
    """What ``one_pair`` adds to ``before``; few sums in two parts each, to hide the latency of an addition."""
    if len(before) >= 8:
        return list(simd.loop(b, num_pairs, before, one_pair))
    sums = simd.loop(b, num_pairs, [part for total in before for part in (total, _ZERO)], one_pair)
    return [b.fadd(even, odd) for even, odd in zip(sums[::2], sums[1::2], strict=True)]


def _fetch(b: Any, address: Any) -> None:
    """Into the second cache: what comes a block later would drive out of the first what is read now."""
    simd.prefetch(b, address, level=2)


def _all(b: Any, count: Any, at_once: int, body: Callable[[Any, int], Any]) -> None:
    """``body(first, number)`` for ``count`` things: ``at_once`` of them at a time, then half as many, down to one."""
    done: Any = ir.Constant(I64, 0)
    while at_once:
        step = ir.Constant(I64, at_once)
        times = b.udiv(b.sub(count, done), step)

        def some(i: Any, _: Any, done: Any = done, step: Any = step, number: int = at_once) -> Any:
            return body(b.add(done, b.mul(i, step)), number)

        simd.loop(b, times, [], some)
        done = b.add(done, b.mul(times, step))
        at_once //= 2


def _score(num_queries: int, num_tiles: int) -> Intrinsic:
    """A page's keys against ``num_queries`` queries, ``num_tiles`` times 16 keys at a time."""

    @intrinsic
    def score(context, keys, used_tiles, num_pairs, queries, query_bytes, scores, score_bytes, ahead):  # type: ignore[no-untyped-def]
        """keys [used_tiles][D/2][16][2] bfloat16; queries [.][D], scores [.][used_tiles][16] float32.

        Rows of the two lie ``query_bytes`` and ``score_bytes`` apart; ``num_pairs``: D / 2.
        ``ahead``: as many bytes as the keys have are fetched from there.
        """

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            keys, used_tiles, num_pairs, queries, query_bytes, scores, score_bytes, ahead = arguments
            rows = [b.add(queries, b.mul(query_bytes, ir.Constant(I64, q))) for q in range(num_queries)]
            places = [b.add(scores, b.mul(score_bytes, ir.Constant(I64, q))) for q in range(num_queries)]
            tile_bytes = b.mul(num_pairs, ir.Constant(I64, LINE_BYTES))

            def tiles(first: Any, num: int) -> list[Any]:
                offset = b.mul(first, tile_bytes)
                offsets = [b.add(offset, b.mul(tile_bytes, ir.Constant(I64, t))) for t in range(num)]

                def one_pair(i: Any, sums: Any) -> list[Any]:
                    lines = [b.add(tile, b.mul(i, ir.Constant(I64, LINE_BYTES))) for tile in offsets]
                    return _add_products(b, keys, lines, ahead, rows, i, sums)

                for nth, total in enumerate(_summed(b, num_pairs, [_ZERO] * (num_queries * num), one_pair)):
                    tile = b.add(first, ir.Constant(I64, nth % num))
                    simd.store(b, total, b.add(places[nth // num], b.mul(tile, ir.Constant(I64, LINE_BYTES))))
                return []

            _all(b, used_tiles, num_tiles, tiles)
            return _context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return score  # type: ignore[no-any-return]


score_1, score_2, score_4, score_8 = _score(1, 2), _score(2, 2), _score(4, 2), _score(8, 2)


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
            _fetch(b, b.add(ahead, b.mul(line, ir.Constant(I64, LINE_BYTES))))

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


def _mix(num_queries: int, num_groups: int) -> Intrinsic:
    """Shares of ``num_queries`` queries times a page's values, ``num_groups`` times 16 dimensions at a time."""

    @intrinsic
    def mix(context, values, num_pairs, all_groups, shares, share_bytes, mixed, mixed_bytes, ahead):  # type: ignore[no-untyped-def]
        """mixed[.][16 * all_groups] += shares[.][2 * num_pairs] @ values [num_pairs][16 * all_groups][2] bfloat16.

        Shares and sums are float32; their rows lie ``share_bytes`` and ``mixed_bytes`` apart.
        ``ahead``: as ``score`` has it.
        """

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            values, num_pairs, all_groups, shares, share_bytes, mixed, mixed_bytes, ahead = arguments
            rows = [b.add(shares, b.mul(share_bytes, ir.Constant(I64, q))) for q in range(num_queries)]
            targets = [b.add(mixed, b.mul(mixed_bytes, ir.Constant(I64, q))) for q in range(num_queries)]
            row_bytes = b.mul(all_groups, ir.Constant(I64, LINE_BYTES))

            def groups(first: Any, num: int) -> list[Any]:
                offset = b.mul(first, ir.Constant(I64, LINE_BYTES))
                steps = [b.add(offset, ir.Constant(I64, g * LINE_BYTES)) for g in range(num)]
                places = [b.add(target, step) for target in targets for step in steps]

                def one_pair(i: Any, sums: Any) -> list[Any]:
                    row = b.add(b.mul(i, row_bytes), offset)
                    lines = [b.add(row, ir.Constant(I64, g * LINE_BYTES)) for g in range(num)]
                    return _add_products(b, values, lines, ahead, rows, i, sums)

                before = [simd.load(b, place, FLOATS) for place in places]
                for place, total in zip(places, _summed(b, num_pairs, before, one_pair), strict=True):
                    simd.store(b, total, place)
                return []

            _all(b, all_groups, num_groups, groups)
            return _context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return mix  # type: ignore[no-any-return]


mix_1, mix_2, mix_4, mix_8 = _mix(1, 8), _mix(2, 8), _mix(4, 4), _mix(8, 2)


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
