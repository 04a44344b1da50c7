"""The inner products of paged attention, as intrinsics on addresses.

In: addresses of one page's keys or values, of queries, scores and running sums; out: those sums, changed in place.
Layouts are those of pages.py: no sum runs across lanes.  A ``kind``, the type of a page's numbers, is uint16 for
bfloat16 or int8; those are multiplied as they are, and by their scales where sums are done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.simd import F32, FLOATS, I32, I64, INTS, LANES, LINE_BYTES

_ZERO = simd.constant(FLOATS, 0.0)

Intrinsic = Callable[..., Any]


def _numbers(b: Any, kind: Any, line: Any) -> list[Any]:
    """A line's numbers: 16 even and 16 odd ones in float32, or 16 pairs of int16 twice."""
    if kind.dtype == types.uint16:
        return [*simd.halves(b, simd.load(b, line, INTS))]
    return [simd.load_words(b, line), simd.load_words(b, simd.at(b, line, 2 * LANES))]


def _add_product(b: Any, kind: Any, total: Any, numbers: Any, place: Any) -> Any:
    """``total`` plus ``numbers`` times what lies at ``place``: a float32, or a pair of int16."""
    if kind.dtype == types.uint16:
        return simd.multiply_add(b, numbers, simd.spread(b, simd.load(b, place, F32)), total)
    own = simd.spread(b, simd.load(b, place, I32))
    return simd.dot_pairs(b, total, numbers, b.bitcast(own, simd.WORDS))


def _zero(kind: Any) -> Any:
    """What sums of a kind begin with."""
    return _ZERO if kind.dtype == types.uint16 else simd.constant(INTS, 0)


def _add_products(b: Any, kind: Any, source: Any, lines: Any, ahead: Any, rows: Any, i: Any, sums: Any) -> list[Any]:
    """sums [rows][lines][1 or 2] plus the numbers in ``lines`` of ``source``, times the ``i``-th ones of each row.

    Of bfloat16 by multiply-adds in float32: the instruction for its products takes some four times as long as one.
    The same lines are fetched from ``ahead``.
    """
    totals, apart = [*sums], len(sums) // (len(rows) * len(lines))
    numbers = []
    for line in lines:
        simd.prefetch_later(b, b.add(ahead, line))
        numbers.append(_numbers(b, kind, b.add(source, line)))
    for q, row in enumerate(rows):
        for part in range(2):
            place = simd.at(b, b.add(row, b.mul(i, ir.Constant(I64, 8))), 4 * part)
            for nth, of_line in enumerate(numbers):
                to = (q * len(lines) + nth) * apart + part % apart
                totals[to] = _add_product(b, kind, totals[to], of_line[part], place)
    return totals


def _summed(b: Any, num_lines: Any, before: list[Any], one_line: Callable[[Any, Any], list[Any]]) -> list[Any]:
    """What ``one_line`` adds to ``before``; few sums in two parts each, to hide the latency of an addition."""
    if len(before) >= 8:
        return list(simd.loop(b, num_lines, before, one_line))
    whole = before[0].type == INTS
    zero, add = (simd.constant(INTS, 0), b.add) if whole else (_ZERO, b.fadd)
    sums = simd.loop(b, num_lines, [part for total in before for part in (total, zero)], one_line)
    return [add(even, odd) for even, odd in zip(sums[::2], sums[1::2], strict=True)]


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
    def score(context, kind, keys, used_tiles, num_lines, queries, query_bytes, scores, score_bytes, ahead):  # type: ignore[no-untyped-def]
        """keys [used_tiles][num_lines] lines of ``kind``; queries [.][D] float32, or int16 where keys are int8.

        scores [.][used_tiles][16] float32, which are sums of whole numbers then, without scales.
        Rows of the two lie ``query_bytes`` and ``score_bytes`` apart.
        ``ahead``: as many bytes as the keys have are fetched from there.
        """

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            _, keys, used_tiles, num_lines, queries, query_bytes, scores, score_bytes, ahead = arguments
            rows = [b.add(queries, b.mul(query_bytes, ir.Constant(I64, q))) for q in range(num_queries)]
            places = [b.add(scores, b.mul(score_bytes, ir.Constant(I64, q))) for q in range(num_queries)]
            tile_bytes = b.mul(num_lines, ir.Constant(I64, LINE_BYTES))

            def tiles(first: Any, num: int) -> list[Any]:
                offset = b.mul(first, tile_bytes)
                offsets = [b.add(offset, b.mul(tile_bytes, ir.Constant(I64, t))) for t in range(num)]

                def one_line(i: Any, sums: Any) -> list[Any]:
                    lines = [b.add(tile, b.mul(i, ir.Constant(I64, LINE_BYTES))) for tile in offsets]
                    return _add_products(b, kind, keys, lines, ahead, rows, i, sums)

                for nth, total in enumerate(_summed(b, num_lines, [_zero(kind)] * (num_queries * num), one_line)):
                    total = total if total.type == FLOATS else b.sitofp(total, FLOATS)  # noqa: PLW2901
                    tile = b.add(first, ir.Constant(I64, nth % num))
                    simd.store(b, total, b.add(places[nth // num], b.mul(tile, ir.Constant(I64, LINE_BYTES))))
                return []

            _all(b, used_tiles, num_tiles, tiles)
            return _context.get_dummy_value()

        return types.void(kind, *[types.int64] * 8), generate

    return score  # type: ignore[no-any-return]


score_1, score_2, score_4, score_8 = _score(1, 2), _score(2, 2), _score(4, 2), _score(8, 2)


def _mix(num_queries: int, num_groups: int) -> Intrinsic:
    """Shares of ``num_queries`` queries times a page's values, ``num_groups`` times 16 dimensions at a time."""

    @intrinsic
    def mix(context, kind, values, num_rows, all_groups, shares, share_bytes, scales, mixed, mixed_bytes, ahead):  # type: ignore[no-untyped-def]
        """mixed[.][16 * all_groups] += shares[.][tokens] @ values [num_rows][all_groups] lines of ``kind``.

        Sums are float32, and so are shares, or int16 of ``scales`` [.] float32 where values are int8.
        Rows of the two lie ``share_bytes`` and ``mixed_bytes`` apart.
        ``ahead``: as ``score`` has it.
        """

        def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
            _, values, num_rows, all_groups, shares, share_bytes, scales, mixed, mixed_bytes, ahead = arguments
            rows = [b.add(shares, b.mul(share_bytes, ir.Constant(I64, q))) for q in range(num_queries)]
            targets = [b.add(mixed, b.mul(mixed_bytes, ir.Constant(I64, q))) for q in range(num_queries)]
            row_bytes = b.mul(all_groups, ir.Constant(I64, LINE_BYTES))

            def groups(first: Any, num: int) -> list[Any]:
                offset = b.mul(first, ir.Constant(I64, LINE_BYTES))
                steps = [b.add(offset, ir.Constant(I64, g * LINE_BYTES)) for g in range(num)]
                places = [b.add(target, step) for target in targets for step in steps]

                def one_row(i: Any, sums: Any) -> list[Any]:
                    row = b.add(b.mul(i, row_bytes), offset)
                    lines = [b.add(row, ir.Constant(I64, g * LINE_BYTES)) for g in range(num)]
                    return _add_products(b, kind, values, lines, ahead, rows, i, sums)

                before = [simd.load(b, place, FLOATS) for place in places]
                if kind.dtype == types.uint16:
                    sums = _summed(b, num_rows, before, one_row)
                else:
                    sums = _summed(b, num_rows, [_zero(kind)] * len(places), one_row)
                    own = [simd.spread(b, simd.load(b, simd.at(b, scales, 4 * q), F32)) for q in range(num_queries)]
                    sums = [
                        simd.multiply_add(b, b.sitofp(total, FLOATS), own[nth // num], before[nth])
                        for nth, total in enumerate(sums)
                    ]
                for place, total in zip(places, sums, strict=True):
                    simd.store(b, total, place)
                return []

            _all(b, all_groups, num_groups, groups)
            return _context.get_dummy_value()

        return types.void(kind, *[types.int64] * 9), generate

    return mix  # type: ignore[no-any-return]


mix_1, mix_2, mix_4, mix_8 = _mix(1, 8), _mix(2, 8), _mix(4, 4), _mix(8, 2)


@intrinsic
def fetch(context, address, num_lines):  # type: ignore[no-untyped-def]
    """Ask for ``num_lines`` lines at ``address``."""

    def generate(_context, b, _signature, arguments):  # type: ignore[no-untyped-def]
        address, num_lines = arguments

        def line(i: Any, _: Any) -> list[Any]:
            simd.prefetch_later(b, b.add(address, b.mul(i, ir.Constant(I64, LINE_BYTES))))
            return []

        simd.loop(b, num_lines, [], line)
        return _context.get_dummy_value()

    return types.void(*[types.int64] * 2), generate


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
