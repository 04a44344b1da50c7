"""Compiled products of rows with a packed weight: bfloat16 by AVX512-BF16, int8 by AVX512-VNNI.

In and out: addresses, as the arguments of a :class:`~.team.Job`; layouts are those of layout.py.
An item is 64 outputs for some rows.  The weight's 64 rows are read once from memory and then from the cache, for six
rows of input at a time: their 24 sums stay in registers.  Small shapes are bound by memory, large ones by arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import simd
from penstock.models.fast.layout import BLOCK
from penstock.models.fast.simd import FLOATS, I64, INTS
from penstock.models.fast.team import NUM_ITEMS, Job, take

GROUP = 4
"""Blocks of outputs that a tile takes together."""
MOST_ROWS = 6
"""Rows that a tile takes at most: with GROUP blocks, 24 sums of the 32 registers there are."""

(X, WEIGHT, BIAS, OUT, NUM_ROWS, NUM_STEPS, NUM_BLOCKS, X_STRIDE, OUT_STRIDE, ITEM_ROWS, WIDE) = range(2, 13)
"""Arguments of a product.  X: rows of 4 * NUM_STEPS bytes; WEIGHT: NUM_BLOCKS blocks; BIAS: float32, one per output of
all blocks; OUT: bfloat16, or float32 where WIDE is 1, of which whole blocks are written; strides in bytes;
ITEM_ROWS: rows of an item."""
X_SCALES, WEIGHT_SCALES, OFFSETS = 13, 14, 15
"""Further ones for int8: a float32 per row of X and per output, and the int32 that each output's sum begins with."""

_LINE = 64
"""Bytes of a register, and of sixteen float32 or int32 that go with a block's outputs."""
_AHEAD = 2048
"""Bytes that a stream of weights is asked for in advance: the time of a memory access at full speed."""

Values = list[Any]


@dataclass(frozen=True, slots=True)
class _Tile:
    """Where code for a tile of ``rows`` rows and ``blocks`` blocks stands: from ``row`` and ``block`` on (int64)."""

    b: Any
    job: Any
    rows: int
    blocks: int
    row: Any
    block: Any

    def argument(self, index: int) -> Any:
        return self.b.load(self.b.gep(self.job, [ir.Constant(I64, index)]))

    def per_output(self, index: int, kind: Any) -> Values:
        """Registers with argument ``index``'s values for the tile's outputs."""
        first = self.b.add(self.argument(index), self.b.mul(self.block, ir.Constant(I64, _LINE)))
        return [simd.load(self.b, simd.at(self.b, first, block * _LINE), kind) for block in range(self.blocks)]

    def rows_of(self, index: int, stride: Any) -> Values:
        """Addresses of the tile's rows of argument ``index``."""
        first = self.b.add(self.argument(index), self.b.mul(self.row, stride))
        return [self.b.add(first, self.b.mul(stride, ir.Constant(I64, row))) for row in range(self.rows)]


def _sums(tile: _Tile, begin: Values, dot: Callable[..., Any]) -> Values:
    """The dot products of the tile's rows with its blocks over all steps: rows * blocks registers."""
    b, num_steps = tile.b, tile.argument(NUM_STEPS)
    block_bytes = b.mul(num_steps, ir.Constant(I64, _LINE))
    first = b.add(tile.argument(WEIGHT), b.mul(tile.block, block_bytes))
    blocks = [b.add(first, b.mul(block_bytes, ir.Constant(I64, block))) for block in range(tile.blocks)]
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
    wide = b.icmp_signed("!=", tile.argument(WIDE), ir.Constant(I64, 0))
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
    def dot(b: Any, total: Any, x: Any, weights: Any) -> Any:
        return simd.dot_bf16(b, total, b.bitcast(x, simd.BFLOATS), b.bitcast(weights, simd.BFLOATS))

    _store(tile, _sums(tile, tile.per_output(BIAS, FLOATS), dot))


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


def _tile(generate: Callable[[_Tile], None]) -> Any:
    """An intrinsic (job, row, rows, block, blocks): rows 1 .. MOST_ROWS, blocks GROUP or 1."""
    sizes = [(rows, blocks) for blocks in (GROUP, 1) for rows in range(1, MOST_ROWS + 1)]

    @intrinsic  # type: ignore[untyped-decorator]  # numba has no types
    def tile(_context: Any, job: Any, row: Any, rows: Any, block: Any, blocks: Any) -> Any:
        def made(context: Any, b: Any, _s: Any, values: Any) -> Any:
            job, row, wanted_rows, block, wanted_blocks = values
            for rows, blocks in sizes:
                fits_rows = b.icmp_signed("==", wanted_rows, ir.Constant(I64, rows))
                fits_blocks = b.icmp_signed("==", wanted_blocks, ir.Constant(I64, blocks))
                with b.if_then(b.and_(fits_rows, fits_blocks)):
                    generate(_Tile(b, job, rows, blocks, row, block))
            return context.get_dummy_value()

        return types.void(types.CPointer(types.int64), *[types.int64] * 4), made

    return tile


# Intrinsics as globals and one function for each: Numba keeps no compiled code whose intrinsics are closures.
_tile_bf16 = _tile(_bf16)
_tile_int8 = _tile(_int8)


def _multiply_bf16(job: Any) -> None:
    groups = (job[NUM_BLOCKS] + GROUP - 1) // GROUP
    item = take(job)
    while item < job[NUM_ITEMS]:
        block, row = item % groups * GROUP, item // groups * job[ITEM_ROWS]
        end, last_block = min(job[NUM_ROWS], row + job[ITEM_ROWS]), min(job[NUM_BLOCKS], block + GROUP)
        size = GROUP if last_block - block == GROUP else 1
        while row < end:
            rows = (end - row) // ((end - row + MOST_ROWS - 1) // MOST_ROWS)
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
        size = GROUP if last_block - block == GROUP else 1
        while row < end:
            rows = (end - row) // ((end - row + MOST_ROWS - 1) // MOST_ROWS)
            for first in range(block, last_block, size):
                _tile_int8(job, row, rows, first, size)
            row += rows
        item = take(job)


multiply_bf16 = Job(_multiply_bf16)
"""x[T, I] of bfloat16 times a weight of bfloat16: sums in float32 of exact products, rounded once."""

multiply_int8 = Job(_multiply_int8)
"""x[T, I] of uint8, each 128 more than it stands for, times a weight of int8: whole sums, then scaled."""
