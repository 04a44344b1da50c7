"""Code for one tile of a product: some rows of X times some blocks of a packed weight, all sums in registers.

In: a builder where the tile's code belongs, and the arguments of a :class:`~.team.Job`; out: code that stores the
tile's outputs.  Which tiles there are, and in which order, products.py says; layouts are those of layout.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from penstock.models.fast import simd
from penstock.models.fast.layout import BLOCK
from penstock.models.fast.simd import FLOATS, I64, INTS

(X, WEIGHT, BIAS, OUT, NUM_ROWS, NUM_STEPS, NUM_BLOCKS, X_STRIDE, OUT_STRIDE, ITEM_ROWS, FLOATS_OUT) = range(2, 13)
"""Arguments of a product.  X: rows of NUM_STEPS times 4 bytes (8 for int4; for bfloat16 two float32); WEIGHT:
NUM_BLOCKS blocks; BIAS: float32, one per output of all blocks; OUT: bfloat16, or float32 where FLOATS_OUT is 1, of
which whole blocks are written; strides in bytes; ITEM_ROWS: rows of an item."""
X_SCALES, WEIGHT_SCALES, OFFSETS = 13, 14, 15
"""Further ones for int8: a float32 per row of X and per output, and the int32 that each output's sum begins with."""
ZEROS, ROW_SUMS, NUM_GROUPS = 15, 16, 17
"""For int4, beside the scales, which are [O / 16, NUM_GROUPS, 16] there: zero points of the same shape, uint8, and
each row's sums [T, NUM_GROUPS] float32.  A line of the weight then has 8 inputs: those of the low and of the high
halves of its bytes, four each."""

_LINE = 64
"""Bytes of a register, and of sixteen float32 or int32 that go with a block's outputs."""
_BYTES = ir.VectorType(ir.IntType(8), BLOCK)
_NEAR = 1024
"""Bytes that a stream of weights is asked for in advance, into the first cache; what comes after this tile is asked for
into the second.  Either alone leaves a tenth of memory's speed unused: too few lines are under way."""
_QUAD = 4

Values = list[Any]


@dataclass(frozen=True, slots=True)
class Tile:
    """Where code for a tile of ``rows`` rows and ``blocks`` blocks stands: from ``row`` and ``block`` on (int64).

    Rows behind ``last`` are that one again, computed and written over with the same; ``exact``: there are none.
    ``next_block``: the block whose tile comes after this one.
    """

    b: Any
    job: Any
    rows: int
    blocks: int
    row: Any
    block: Any
    last: Any
    next_block: Any
    exact: bool

    def argument(self, index: int) -> Any:
        return self.b.load(self.b.gep(self.job, [ir.Constant(I64, index)]))

    def per_output(self, index: int, kind: Any) -> Values:
        """Registers with argument ``index``'s values for the tile's outputs."""
        first = self.b.add(self.argument(index), self.b.mul(self.block, ir.Constant(I64, _LINE)))
        return [simd.load(self.b, simd.at(self.b, first, block * _LINE), kind) for block in range(self.blocks)]

    def rows_of(self, index: int, stride: Any) -> Values:
        """Addresses of the tile's rows of argument ``index``."""
        b, first = self.b, self.argument(index)
        return [b.add(first, b.mul(self.row_number(nth), stride)) for nth in range(self.rows)]

    def row_number(self, nth: int) -> Any:
        b, row = self.b, self.b.add(self.row, ir.Constant(I64, nth))
        return row if self.exact else b.select(b.icmp_signed("<", row, self.last), row, self.last)


class _Weights:
    """The tile's lines of the weight, asked for in advance."""

    def __init__(self, tile: Tile) -> None:
        b = self._b = tile.b
        block_bytes = b.mul(tile.argument(NUM_STEPS), ir.Constant(I64, _LINE))
        first = b.add(tile.argument(WEIGHT), b.mul(tile.block, block_bytes))
        self._blocks = [b.add(first, b.mul(block_bytes, ir.Constant(I64, nth))) for nth in range(tile.blocks)]
        self._ahead = b.mul(b.sub(tile.next_block, tile.block), block_bytes)

    def lines(self, i: Any) -> Values:
        """The ``i``-th of each block."""
        b, found = self._b, []
        for block in self._blocks:
            place = b.add(block, b.mul(i, ir.Constant(I64, _LINE)))
            simd.prefetch(b, simd.at(b, place, _NEAR))
            simd.prefetch(b, b.add(place, self._ahead), level=2)
            found.append(simd.load(b, place, INTS))
        return found


class _Walk:
    """The tile's rows of X, by few registers: addresses of every fourth row, which move on, and the ways between.

    An address per row would be in memory itself, and loading it would cost as much as loading what lies there.
    """

    def __init__(self, tile: Tile) -> None:
        b, stride = tile.b, tile.argument(X_STRIDE)
        self._b = b
        firsts = range(0, tile.rows, _QUAD)
        self.begin = [b.add(tile.argument(X), b.mul(tile.row_number(nth), stride)) for nth in firsts]
        evenly = [b.mul(stride, ir.Constant(I64, nth)) for nth in range(_QUAD)]
        tail = tile.row_number(firsts[-1])
        numbers = [tile.row_number(nth) for nth in range(firsts[-1], tile.rows)]
        at_end = [b.mul(b.sub(number, tail), stride) for number in numbers]
        self._ways = [evenly] * (len(firsts) - 1) + [evenly[: len(numbers)] if tile.exact else at_end]

    def rows(self, places: Sequence[Any]) -> Values:
        """Addresses of all rows, ``places`` being those of every fourth."""
        b = self._b
        return [b.add(first, way) for first, ways in zip(places, self._ways, strict=True) for way in ways]

    def on(self, places: Sequence[Any], num_bytes: int) -> Values:
        return [simd.opaque(self._b, simd.at(self._b, place, num_bytes)) for place in places]


class _Outputs:
    """The tile's lines of the output, asked for while it is computed, two of each row.

    Its stores come all at once and in order: each would wait for its line to come from another core or from memory.
    """

    def __init__(self, tile: Tile) -> None:
        b = self._b = tile.b
        self._stride = tile.argument(OUT_STRIDE)
        wide = b.icmp_signed("!=", tile.argument(FLOATS_OUT), ir.Constant(I64, 0))
        block_bytes = b.select(wide, ir.Constant(I64, 4 * BLOCK), ir.Constant(I64, 2 * BLOCK))
        self._first = b.add(b.add(tile.argument(OUT), b.mul(tile.row, self._stride)), b.mul(tile.block, block_bytes))
        self._pace = b.udiv(ir.Constant(I64, tile.rows << 16), tile.argument(NUM_STEPS))

    def ask(self, i: Any) -> None:
        """For one of them, at the tile's ``i``-th step."""
        b = self._b
        row = b.lshr(b.mul(i, self._pace), ir.Constant(I64, 16))
        line = b.shl(b.and_(i, ir.Constant(I64, 1)), ir.Constant(I64, 6))
        simd.prefetch(b, b.add(b.add(self._first, b.mul(row, self._stride)), line), to_write=True)


def bf16(tile: Tile) -> None:
    """Of the two inputs in four bytes, the even one's bits and the odd one's each become a float32.

    Twice the speed of the dot product of bfloat16 (VDPBF16PS) on Emerald Rapids (Intel's family 6, model 207), where
    a multiply-add of as many float32 (VFMADD231PS) takes a quarter of its time.
    """
    b, weights, walk = tile.b, _Weights(tile), _Walk(tile)
    begin = tile.per_output(BIAS, FLOATS) * tile.rows

    def step(i: Any, carried: Any) -> Values:
        sums, places = carried[: len(begin)], carried[len(begin) :]
        halves = [simd.halves(b, line) for line in weights.lines(i)]
        added: Values = []
        for row in walk.rows(places):
            first, second = (simd.spread(b, simd.load(b, simd.at(b, row, place), simd.F32)) for place in (0, 4))
            for even, odd in halves:
                total = simd.multiply_add(b, first, even, sums[len(added)])
                added.append(simd.multiply_add(b, second, odd, total))
        return added + walk.on(places, 8)

    _store(tile, list(simd.loop(b, tile.argument(NUM_STEPS), begin + walk.begin, step))[: len(begin)])


def int8(tile: Tile) -> None:
    b, weights, walk, outputs = tile.b, _Weights(tile), _Walk(tile), _Outputs(tile)
    begin = tile.per_output(OFFSETS, INTS) * tile.rows

    def step(i: Any, carried: Any) -> Values:
        outputs.ask(i)
        sums, places = carried[: len(begin)], carried[len(begin) :]
        lines = weights.lines(i)
        added: Values = []
        for row in walk.rows(places):
            x = simd.spread(b, simd.load(b, row, simd.I32))
            for line in lines:
                added.append(simd.dot_int8(b, sums[len(added)], x, line))
        return added + walk.on(places, 4)

    sums = simd.loop(b, tile.argument(NUM_STEPS), begin + walk.begin, step)
    scales, bias = tile.per_output(WEIGHT_SCALES, FLOATS), tile.per_output(BIAS, FLOATS)
    values: Values = []
    for address in tile.rows_of(X_SCALES, ir.Constant(I64, 4)):
        x_scale = simd.spread(b, simd.load(b, address, simd.F32))
        for scale, offset in zip(scales, bias, strict=True):
            scaled = b.fmul(b.fmul(b.sitofp(sums[len(values)], FLOATS), x_scale), scale)
            values.append(b.fadd(scaled, offset))
    _store(tile, values)


def int4(tile: Tile) -> None:
    """Group by group: whole sums first, then less the zero points, scaled, and added to the totals in float32."""
    b, weights, walk, outputs = tile.b, _Weights(tile), _Walk(tile), _Outputs(tile)
    num_groups, num_sums = tile.argument(NUM_GROUPS), tile.rows * tile.blocks
    group_lines = b.sdiv(tile.argument(NUM_STEPS), num_groups)
    row_sums = tile.rows_of(ROW_SUMS, b.mul(num_groups, ir.Constant(I64, 4)))
    numbers = [b.add(tile.block, ir.Constant(I64, block)) for block in range(tile.blocks)]
    nibbles, four = simd.constant(INTS, 0x0F0F0F0F), simd.constant(INTS, 4)

    def group(nth: Any, carried: Any) -> Values:
        totals, places = carried[:num_sums], carried[num_sums:]

        def line(i: Any, carried: Any) -> Values:
            sums, places = carried[:num_sums], carried[num_sums:]
            step = b.add(b.mul(nth, group_lines), i)
            lines = weights.lines(step)
            outputs.ask(step)
            halves = [(b.and_(pairs, nibbles), b.and_(b.lshr(pairs, four), nibbles)) for pairs in lines]
            added: Values = []
            for row in walk.rows(places):
                first, second = (simd.spread(b, simd.load(b, simd.at(b, row, place), simd.I32)) for place in (0, 4))
                for low, high in halves:
                    total = simd.dot_int8(b, sums[len(added)], low, first)
                    added.append(simd.dot_int8(b, total, high, second))
            return added + walk.on(places, 8)

        found = simd.loop(b, group_lines, [simd.constant(INTS, 0)] * num_sums + list(places), line)
        elements = [b.add(b.mul(number, num_groups), nth) for number in numbers]
        scales = [simd.load(b, _element(tile, WEIGHT_SCALES, element, _LINE), FLOATS) for element in elements]
        zeros = [simd.load(b, _element(tile, ZEROS, element, BLOCK), _BYTES) for element in elements]
        zeros = [b.fneg(b.uitofp(b.zext(zero, INTS), FLOATS)) for zero in zeros]
        added: Values = []
        for address in row_sums:
            row_sum = simd.spread(b, simd.load(b, b.add(address, b.mul(nth, ir.Constant(I64, 4))), simd.F32))
            for zero, scale in zip(zeros, scales, strict=True):
                # Whole numbers below 2 ** 24 for groups of up to 4,096 inputs: nothing is rounded before the scale.
                whole = simd.multiply_add(b, zero, row_sum, b.sitofp(found[len(added)], FLOATS))
                added.append(simd.multiply_add(b, whole, scale, totals[len(added)]))
        return added + list(found[num_sums:])

    zero = simd.constant(FLOATS, 0.0)
    totals = simd.loop(b, num_groups, [zero] * num_sums + walk.begin, group)
    bias = tile.per_output(BIAS, FLOATS)
    values: Values = []
    for address in tile.rows_of(X_SCALES, ir.Constant(I64, 4)):
        x_scale = simd.spread(b, simd.load(b, address, simd.F32))
        for added in bias:
            values.append(b.fadd(b.fmul(totals[len(values)], x_scale), added))
    _store(tile, values)


def _element(tile: Tile, index: int, nth: Any, num_bytes: int) -> Any:
    """The address of the ``nth`` of argument ``index``'s elements of ``num_bytes``."""
    return tile.b.add(tile.argument(index), tile.b.mul(nth, ir.Constant(I64, num_bytes)))


def _store(tile: Tile, values: Values) -> None:
    """``values`` float32 to the rows of the output, rounded unless it is wide."""
    b = tile.b
    rows = tile.rows_of(OUT, tile.argument(OUT_STRIDE))
    wide = b.icmp_signed("!=", tile.argument(FLOATS_OUT), ir.Constant(I64, 0))
    with b.if_else(wide) as branches:
        for branch, value_bytes in zip(branches, (4, 2), strict=True):
            with branch:
                across = b.mul(tile.block, ir.Constant(I64, BLOCK * value_bytes))
                for row, address in enumerate(rows):
                    for block in range(tile.blocks):
                        value = values[row * tile.blocks + block]
                        stored = value if value_bytes == 4 else simd.to_bf16(b, value)
                        place = simd.at(b, b.add(address, across), block * BLOCK * value_bytes)
                        simd.store(b, stored, place)


Generate = Callable[[Tile], None]
