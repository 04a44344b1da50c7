"""Compiled products of rows with a packed weight: bfloat16 by multiply-add in float32, int8 and int4 in whole numbers.

In and out: addresses, as the arguments of a :class:`~.team.Job`; layouts are those of layout.py.
An item is 64 outputs for some rows, computed tile by tile: some rows times 16, 32 or 64 outputs, with all sums in
registers.  Few rows read a weight once, and arithmetic hides the reading; many go through in twelves or sixes, and read
it again from the cache.  Small shapes are bound by memory, large ones by arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.compiled import compiled
from penstock.models.fast.cpu import has
from penstock.models.fast.layout import BLOCK
from penstock.models.fast.simd import FLOATS, I64, INTS
from penstock.models.fast.team import NUM_ITEMS, Job, take

GROUP = 4
"""Blocks of outputs of an item, and of the largest tiles."""
PAIR = 2
"""The same where each sum is kept twice: for int4, of a group of inputs and of all before it."""

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
_AHEAD = 2048
"""Bytes that a stream of weights is asked for in advance: the time of a memory access at full speed."""

Values = list[Any]


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Which tiles there are, (rows, blocks) in rising order of rows for each number of blocks.

    ``tiers``: up to so many rows go through so many blocks at once; ``many``: more of them in such tiles.
    One block has a tile for any number of rows that these name.
    """

    sizes: tuple[tuple[int, int], ...]
    tiers: tuple[tuple[int, int], ...]
    many: tuple[int, int]


def _sizes(rows: Sequence[int], blocks: int) -> tuple[tuple[int, int], ...]:
    return tuple((each, blocks) for each in rows)


def _narrow(most: int) -> _Tiles:
    """For 16 registers of half the size: up to ``most`` rows with one block."""
    return _Tiles(_sizes(range(1, most + 1), 1), ((most, 1),), (most, 1))


_FLOAT_TILES = _Tiles(
    _sizes(range(1, 6), 4) + _sizes((6, 8, 10, 12), 2) + _sizes((1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24), 1),
    ((5, 4), (12, 2), (24, 1)),
    (12, 2),
)
"""32 registers less two of weights for each block and two of inputs."""
_INT8_TILES = _Tiles(
    _sizes(range(1, 7), 4) + _sizes((8, 10, 12, 14), 2) + _sizes((1, 2, 3, 4, 5, 6, 8, 10, 12, 14, 16, 20, 24, 28), 1),
    ((6, 4), (14, 2), (28, 1)),
    (6, 4),
)
_INT4_TILES = _Tiles(
    _sizes(range(1, 7), 2) + _sizes((1, 2, 3, 4, 5, 6, 8, 10, 12), 1),
    ((6, 2), (12, 1)),
    (6, 2),
)


@dataclass(frozen=True, slots=True)
class _Tile:
    """Where code for a tile of ``rows`` rows and ``blocks`` blocks stands: from ``row`` and ``block`` on (int64).

    Rows behind ``last`` are that one again, computed and written over with the same.
    """

    b: Any
    job: Any
    rows: int
    blocks: int
    row: Any
    block: Any
    last: Any

    def argument(self, index: int) -> Any:
        return self.b.load(self.b.gep(self.job, [ir.Constant(I64, index)]))

    def per_output(self, index: int, kind: Any) -> Values:
        """Registers with argument ``index``'s values for the tile's outputs."""
        first = self.b.add(self.argument(index), self.b.mul(self.block, ir.Constant(I64, _LINE)))
        return [simd.load(self.b, simd.at(self.b, first, block * _LINE), kind) for block in range(self.blocks)]

    def weights(self) -> Values:
        """Addresses of the tile's blocks of the weight."""
        block_bytes = self.b.mul(self.argument(NUM_STEPS), ir.Constant(I64, _LINE))
        first = self.b.add(self.argument(WEIGHT), self.b.mul(self.block, block_bytes))
        return [self.b.add(first, self.b.mul(block_bytes, ir.Constant(I64, nth))) for nth in range(self.blocks)]

    def rows_of(self, index: int, stride: Any) -> Values:
        """Addresses of the tile's rows of argument ``index``."""
        b, first, places = self.b, self.argument(index), []
        for nth in range(self.rows):
            row = b.add(self.row, ir.Constant(I64, nth))
            row = b.select(b.icmp_signed("<", row, self.last), row, self.last)
            places.append(b.add(first, b.mul(row, stride)))
        return places


def _sums(tile: _Tile, begin: Values, dot: Callable[..., Any]) -> Values:
    """The dot products of the tile's rows with its blocks over all steps: rows * blocks registers."""
    b, num_steps, blocks = tile.b, tile.argument(NUM_STEPS), tile.weights()
    rows = tile.rows_of(X, tile.argument(X_STRIDE))

    def step(i: Any, sums: Any) -> Values:
        line, four = b.mul(i, ir.Constant(I64, _LINE)), b.mul(i, ir.Constant(I64, 4))
        weights = []
        for block in blocks:
            simd.prefetch(b, simd.at(b, b.add(block, line), _AHEAD))
            weights.append(simd.load(b, b.add(block, line), INTS))
        added: Values = []
        for row in rows:
            x = simd.spread(b, simd.load(b, b.add(row, four), simd.I32))
            added += [dot(b, sums[len(added) + nth], x, weight) for nth, weight in enumerate(weights)]
        return added

    return list(simd.loop(b, num_steps, begin * tile.rows, step))


def _store(tile: _Tile, values: Values) -> None:
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


def _bf16(tile: _Tile) -> None:
    """Of the two inputs in four bytes, the even one's bits and the odd one's each become a float32.

    Twice the speed of the dot product of bfloat16 on a CPU (model 207) that multiplies-adds four times as fast.
    """
    b, blocks = tile.b, tile.weights()
    rows = tile.rows_of(X, tile.argument(X_STRIDE))

    def step(i: Any, sums: Any) -> Values:
        line, eight = b.mul(i, ir.Constant(I64, _LINE)), b.mul(i, ir.Constant(I64, 8))
        weights = []
        for block in blocks:
            simd.prefetch(b, simd.at(b, b.add(block, line), _AHEAD))
            weights.append(simd.halves(b, simd.load(b, b.add(block, line), INTS)))
        added: Values = []
        for row in rows:
            first, second = (
                simd.spread(b, simd.load(b, simd.at(b, b.add(row, eight), place), simd.F32)) for place in (0, 4)
            )
            for even, odd in weights:
                total = simd.multiply_add(b, first, even, sums[len(added)])
                added.append(simd.multiply_add(b, second, odd, total))
        return added

    begin = tile.per_output(BIAS, FLOATS) * tile.rows
    _store(tile, list(simd.loop(b, tile.argument(NUM_STEPS), begin, step)))


def _int8(tile: _Tile) -> None:
    b = tile.b
    sums = _sums(tile, tile.per_output(OFFSETS, INTS), simd.dot_int8)
    scales, bias = tile.per_output(WEIGHT_SCALES, FLOATS), tile.per_output(BIAS, FLOATS)
    values: Values = []
    for address in tile.rows_of(X_SCALES, ir.Constant(I64, 4)):
        x_scale = simd.spread(b, simd.load(b, address, simd.F32))
        for scale, added in zip(scales, bias, strict=True):
            scaled = b.fmul(b.fmul(b.sitofp(sums[len(values)], FLOATS), x_scale), scale)
            values.append(b.fadd(scaled, added))
    _store(tile, values)


def _int4(tile: _Tile) -> None:
    """Group by group: whole sums first, then less the zero points, scaled, and added to the totals in float32."""
    b, num_groups = tile.b, tile.argument(NUM_GROUPS)
    group_lines = b.sdiv(tile.argument(NUM_STEPS), num_groups)
    rows = tile.rows_of(X, tile.argument(X_STRIDE))
    row_sums = tile.rows_of(ROW_SUMS, b.mul(num_groups, ir.Constant(I64, 4)))
    blocks, numbers = tile.weights(), [b.add(tile.block, ir.Constant(I64, block)) for block in range(tile.blocks)]
    nibbles, four = simd.constant(INTS, 0x0F0F0F0F), simd.constant(INTS, 4)

    def group(nth: Any, totals: Any) -> Values:
        def line(i: Any, sums: Any) -> Values:
            at = b.add(b.mul(nth, group_lines), i)
            halves = []
            for block in blocks:
                address = b.add(block, b.mul(at, ir.Constant(I64, _LINE)))
                simd.prefetch(b, simd.at(b, address, _AHEAD))
                pairs = simd.load(b, address, INTS)
                halves.append((b.and_(pairs, nibbles), b.and_(b.lshr(pairs, four), nibbles)))
            added: Values = []
            for row in rows:
                eight = b.add(row, b.mul(at, ir.Constant(I64, 8)))
                first, second = (simd.spread(b, simd.load(b, simd.at(b, eight, place), simd.I32)) for place in (0, 4))
                for low, high in halves:
                    total = simd.dot_int8(b, sums[len(added)], low, first)
                    added.append(simd.dot_int8(b, total, high, second))
            return added

        sums = simd.loop(b, group_lines, [simd.constant(INTS, 0)] * len(totals), line)
        places = [b.add(b.mul(number, num_groups), nth) for number in numbers]
        scales = [simd.load(b, _element(tile, WEIGHT_SCALES, place, _LINE), FLOATS) for place in places]
        zeros = [simd.load(b, _element(tile, ZEROS, place, BLOCK), _BYTES) for place in places]
        zeros = [b.uitofp(b.zext(zero, INTS), FLOATS) for zero in zeros]
        added: Values = []
        for address in row_sums:
            row_sum = simd.spread(b, simd.load(b, b.add(address, b.mul(nth, ir.Constant(I64, 4))), simd.F32))
            for zero, scale in zip(zeros, scales, strict=True):
                # Whole numbers below 2 ** 24 for groups of up to 4,096 inputs: nothing is rounded before the scale.
                whole = b.fsub(b.sitofp(sums[len(added)], FLOATS), b.fmul(zero, row_sum))
                added.append(b.fadd(totals[len(added)], b.fmul(whole, scale)))
        return added

    zero = simd.constant(FLOATS, 0.0)
    totals = simd.loop(b, num_groups, [zero] * (tile.rows * tile.blocks), group)
    bias = tile.per_output(BIAS, FLOATS)
    values: Values = []
    for address in tile.rows_of(X_SCALES, ir.Constant(I64, 4)):
        x_scale = simd.spread(b, simd.load(b, address, simd.F32))
        for added in bias:
            values.append(b.fadd(b.fmul(totals[len(values)], x_scale), added))
    _store(tile, values)


def _element(tile: _Tile, index: int, nth: Any, num_bytes: int) -> Any:
    """The address of the ``nth`` of argument ``index``'s elements of ``num_bytes``."""
    return tile.b.add(tile.argument(index), tile.b.mul(nth, ir.Constant(I64, num_bytes)))


def _tile(generate: Callable[[_Tile], None], tiles: _Tiles) -> Any:
    """An intrinsic (job, row, rows, block, blocks): for ``rows`` rows the smallest tile of so many blocks that fits."""

    @intrinsic  # type: ignore[untyped-decorator]  # numba has no types
    def tile(_context: Any, job: Any, row: Any, rows: Any, block: Any, blocks: Any) -> Any:
        def made(context: Any, b: Any, _s: Any, values: Any) -> Any:
            job, row, wanted_rows, block, wanted_blocks = values
            last = b.sub(b.add(row, wanted_rows), ir.Constant(I64, 1))
            largest: dict[int, int] = {}
            for rows, blocks in tiles.sizes:
                more = b.icmp_signed(">", wanted_rows, ir.Constant(I64, largest.get(blocks, 0)))
                fits = b.icmp_signed("<=", wanted_rows, ir.Constant(I64, rows))
                fits_blocks = b.icmp_signed("==", wanted_blocks, ir.Constant(I64, blocks))
                with b.if_then(b.and_(b.and_(more, fits), fits_blocks)):
                    generate(_Tile(b, job, rows, blocks, row, block, last))
                largest[blocks] = rows
            return context.get_dummy_value()

        return types.void(types.CPointer(types.int64), *[types.int64] * 4), made

    return tile


if not has("avx512f"):
    _FLOAT_TILES, _INT8_TILES, _INT4_TILES = _narrow(5), _narrow(3), _narrow(2)

# Intrinsics as globals and one function for each: Numba keeps no compiled code whose intrinsics are closures.
_tile_bf16 = _tile(_bf16, _FLOAT_TILES)
_tile_int8 = _tile(_int8, _INT8_TILES)
_tile_int4 = _tile(_int4, _INT4_TILES)
_FLOAT_TIERS, _FLOAT_MANY = _FLOAT_TILES.tiers, _FLOAT_TILES.many
_INT8_TIERS, _INT8_MANY = _INT8_TILES.tiers, _INT8_TILES.many
_INT4_TIERS, _INT4_MANY = _INT4_TILES.tiers, _INT4_TILES.many


@compiled
def _cut(num_rows: int, num_blocks: int, tiers: tuple[tuple[int, int], ...], many: tuple[int, int]) -> tuple[int, int]:
    """How many of ``num_rows`` rows, and of an item's blocks, its next tiles take."""
    for most, blocks in tiers:
        if num_rows <= most:
            return num_rows, blocks if num_blocks % blocks == 0 else 1
    most, blocks = many
    num_tiles = (num_rows + most - 1) // most
    return num_rows // num_tiles, blocks if num_blocks % blocks == 0 else 1


def _multiply_bf16(job: Any) -> None:
    groups = (job[NUM_BLOCKS] + GROUP - 1) // GROUP
    item = take(job)
    while item < job[NUM_ITEMS]:
        block, row = item % groups * GROUP, item // groups * job[ITEM_ROWS]
        end, last_block = min(job[NUM_ROWS], row + job[ITEM_ROWS]), min(job[NUM_BLOCKS], block + GROUP)
        while row < end:
            rows, size = _cut(end - row, last_block - block, _FLOAT_TIERS, _FLOAT_MANY)
            for first in range(block, last_block, size):
                _tile_bf16(job, row, rows, first, size)
            row += rows
        item = take(job)


def _multiply_int8(job: Any) -> None:
    groups = (job[NUM_BLOCKS] + GROUP - 1) // GROUP
    item = take(job)
    while item < job[NUM_ITEMS]:
        block, row = item % groups * GROUP, item // groups * job[ITEM_ROWS]
        end, last_block = min(job[NUM_ROWS], row + job[ITEM_ROWS]), min(job[NUM_BLOCKS], block + GROUP)
        while row < end:
            rows, size = _cut(end - row, last_block - block, _INT8_TIERS, _INT8_MANY)
            for first in range(block, last_block, size):
                _tile_int8(job, row, rows, first, size)
            row += rows
        item = take(job)


def _multiply_int4(job: Any) -> None:
    groups = (job[NUM_BLOCKS] + PAIR - 1) // PAIR
    item = take(job)
    while item < job[NUM_ITEMS]:
        block, row = item % groups * PAIR, item // groups * job[ITEM_ROWS]
        end, last_block = min(job[NUM_ROWS], row + job[ITEM_ROWS]), min(job[NUM_BLOCKS], block + PAIR)
        while row < end:
            rows, size = _cut(end - row, last_block - block, _INT4_TIERS, _INT4_MANY)
            for first in range(block, last_block, size):
                _tile_int4(job, row, rows, first, size)
            row += rows
        item = take(job)


multiply_bf16 = Job(_multiply_bf16)
"""x[T, I] of float32 times a weight of bfloat16: sums in float32, rounded once."""

multiply_int8 = Job(_multiply_int8)
"""x[T, I] of uint8, each 128 more than it stands for, times a weight of int8: whole sums, then scaled."""

multiply_int4 = Job(_multiply_int4)
"""x[T, I] of int8 times a weight of four bits with scales and zero points per group of inputs."""
