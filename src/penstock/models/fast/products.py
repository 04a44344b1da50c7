"""Compiled products of rows with a packed weight: bfloat16 by multiply-add in float32, int8 and int4 in whole numbers.

In and out: addresses, as the arguments of a :class:`~.team.Job`, which tiles.py names.
An item is 64 outputs for some rows, computed tile by tile: some rows times 16, 32 or 64 outputs.
Few rows read a weight once, from memory, which bounds them; many go through in equal tiles and read it again from the
cache, and arithmetic bounds them.  A thread knows its next item, so that the weight is on its way before it gets there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from penstock.models.fast import tiles
from penstock.models.fast.compiled import compiled
from penstock.models.fast.cpu import has
from penstock.models.fast.simd import I64
from penstock.models.fast.team import NUM_ITEMS, Job, take
from penstock.models.fast.tiles import ITEM_ROWS, NUM_BLOCKS, NUM_ROWS, Generate, Tile

GROUP = 4
"""Blocks of outputs of an item, and of the largest tiles."""

Tier = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Tiles:
    """Which tiles there are, (rows, blocks) in rising order of rows for each number of blocks.

    ``tiers``: up to so many rows go through so many blocks at once, where the item has them; ``many``: more rows than
    all tiers name go through in such tiles.  One block has a tile for any number of rows that the tiers name.
    """

    sizes: tuple[Tier, ...]
    tiers: tuple[Tier, ...]
    many: Tier


def _sizes(rows: Sequence[int], blocks: int) -> tuple[Tier, ...]:
    return tuple((each, blocks) for each in rows)


def _narrow(most: int) -> _Tiles:
    """For 16 registers of half the size: up to ``most`` rows with one block."""
    return _Tiles(_sizes(range(1, most + 1), 1), ((most, 1),), (most, 1))


_FLOAT_TILES = _Tiles(
    _sizes(range(1, 6), 4) + _sizes((6, 8, 10, 12), 2) + _sizes((1, 2, 3, 4, 6, 8, 12, 16, 20, 24), 1),
    ((5, 4), (12, 2), (24, 1)),
    (12, 2),
)
"""32 registers less two of weights for each block and two of inputs."""
_INT8_TILES = _Tiles(
    _sizes(range(1, 7), 4) + _sizes((8, 10, 12, 14), 2) + _sizes((1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28), 1),
    ((6, 4), (14, 2), (28, 1)),
    (14, 2),
)
_INT4_TILES = _Tiles(
    _sizes(range(1, 6), 4) + _sizes((6, 8, 10, 12), 2) + _sizes((1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28), 1),
    ((5, 4), (12, 2), (28, 1)),
    (12, 2),
)


def _tile(generate: Generate, sizes: _Tiles) -> Any:
    """An intrinsic (job, row, rows, block, blocks, next block): the smallest tile of so many blocks that fits."""

    @intrinsic  # type: ignore[untyped-decorator]  # numba has no types
    def tile(_context: Any, job: Any, row: Any, rows: Any, block: Any, blocks: Any, next_block: Any) -> Any:
        def made(context: Any, b: Any, _s: Any, values: Any) -> Any:
            job, row, wanted_rows, block, wanted_blocks, next_block = values
            last = b.sub(b.add(row, wanted_rows), ir.Constant(I64, 1))
            largest: dict[int, int] = {}
            for rows, blocks in sizes.sizes:
                fewer = largest.get(blocks, 0)
                more = b.icmp_signed(">", wanted_rows, ir.Constant(I64, fewer))
                fits = b.icmp_signed("<=", wanted_rows, ir.Constant(I64, rows))
                fits_blocks = b.icmp_signed("==", wanted_blocks, ir.Constant(I64, blocks))
                with b.if_then(b.and_(b.and_(more, fits), fits_blocks)):
                    generate(Tile(b, job, rows, blocks, row, block, last, next_block, exact=fewer == rows - 1))
                largest[blocks] = rows
            return context.get_dummy_value()

        return types.void(types.CPointer(types.int64), *[types.int64] * 5), made

    return tile


if not has("avx512f"):
    _FLOAT_TILES, _INT8_TILES, _INT4_TILES = _narrow(5), _narrow(3), _narrow(2)

# Intrinsics as globals and one function for each: Numba keeps no compiled code whose intrinsics are closures.
_tile_bf16 = _tile(tiles.bf16, _FLOAT_TILES)
_tile_int8 = _tile(tiles.int8, _INT8_TILES)
_tile_int4 = _tile(tiles.int4, _INT4_TILES)
_FLOAT_TIERS, _FLOAT_MANY = _FLOAT_TILES.tiers, _FLOAT_TILES.many
_INT8_TIERS, _INT8_MANY = _INT8_TILES.tiers, _INT8_TILES.many
_INT4_TIERS, _INT4_MANY = _INT4_TILES.tiers, _INT4_TILES.many


class _Spot(NamedTuple):
    """A tile to compute; ``item``: whose it is; ``coming``: the thread's item after that."""

    item: int
    coming: int
    row: int
    rows: int
    block: int
    blocks: int
    next_block: int


@compiled
def _rows_of(job: Any, item: int) -> tuple[int, int]:
    first = item // ((job[NUM_BLOCKS] + GROUP - 1) // GROUP) * job[ITEM_ROWS]
    return first, min(job[NUM_ROWS], first + job[ITEM_ROWS])


@compiled
def _blocks_of(job: Any, item: int) -> tuple[int, int]:
    first = item % ((job[NUM_BLOCKS] + GROUP - 1) // GROUP) * GROUP
    return first, min(job[NUM_BLOCKS], first + GROUP)


@compiled
def _cut(num_rows: int, whole: bool, num_blocks: int, tiers: tuple[Tier, ...], many: Tier) -> Tier:
    """How many rows, and of an item's blocks, go through next, of ``num_rows``: the item's ``whole``, or what is left.

    What is left has its weights in the cache: for these a tile of many blocks is better than one of many rows.
    """
    for most, blocks in tiers:
        if num_rows <= most and (whole or most <= many[0]):
            return num_rows, blocks if num_blocks % blocks == 0 else 1
    # Not a full tile and a small one: halves, by tiles of even heights.
    rows = many[0] if num_rows > 2 * many[0] else min(many[0], (num_rows + 3) // 4 * 2)
    return rows, many[1] if num_blocks % many[1] == 0 else 1


@compiled
def _at_row(job: Any, item: int, coming: int, row: int, tiers: tuple[Tier, ...], many: Tier) -> _Spot:
    """The first of the item's tiles from ``row`` on."""
    (first, end), (block, last_block) = _rows_of(job, item), _blocks_of(job, item)
    rows, blocks = _cut(end - row, row == first, last_block - block, tiers, many)
    return _at_block(job, item, coming, row, rows, block, blocks)


@compiled
def _at_block(job: Any, item: int, coming: int, row: int, rows: int, block: int, blocks: int) -> _Spot:
    next_block = block + blocks
    if next_block == _blocks_of(job, item)[1]:
        next_block = _blocks_of(job, coming)[0] if coming < job[NUM_ITEMS] else block
    return _Spot(item, coming, row, rows, block, blocks, next_block)


@compiled
def _begin(job: Any, item: int, tiers: tuple[Tier, ...], many: Tier) -> _Spot:
    """The first tile of a thread's ``item``, if there is such an item; another one is taken to come after it."""
    if item >= job[NUM_ITEMS]:
        return _Spot(item, item, 0, 0, 0, 0, 0)
    return _at_row(job, item, take(job), _rows_of(job, item)[0], tiers, many)


@compiled
def _next(job: Any, spot: _Spot, tiers: tuple[Tier, ...], many: Tier) -> _Spot:
    """The tile after ``spot``: beside it, below it, or of the coming item."""
    block, row = spot.block + spot.blocks, spot.row + spot.rows
    if block < _blocks_of(job, spot.item)[1]:
        return _at_block(job, spot.item, spot.coming, spot.row, spot.rows, block, spot.blocks)
    if row < _rows_of(job, spot.item)[1]:
        return _at_row(job, spot.item, spot.coming, row, tiers, many)
    return _begin(job, spot.coming, tiers, many)


@Job
def multiply_bf16(job: Any) -> None:
    """x[T, I] of float32 times a weight of bfloat16: sums in float32, rounded once."""
    spot = _begin(job, take(job), _FLOAT_TIERS, _FLOAT_MANY)
    while spot.item < job[NUM_ITEMS]:
        _tile_bf16(job, spot.row, spot.rows, spot.block, spot.blocks, spot.next_block)
        spot = _next(job, spot, _FLOAT_TIERS, _FLOAT_MANY)


@Job
def multiply_int8(job: Any) -> None:
    """x[T, I] of uint8, each 128 more than it stands for, times a weight of int8: whole sums, then scaled."""
    spot = _begin(job, take(job), _INT8_TIERS, _INT8_MANY)
    while spot.item < job[NUM_ITEMS]:
        _tile_int8(job, spot.row, spot.rows, spot.block, spot.blocks, spot.next_block)
        spot = _next(job, spot, _INT8_TIERS, _INT8_MANY)


@Job
def multiply_int4(job: Any) -> None:
    """x[T, I] of int8 times a weight of four bits with scales and zero points per group of inputs."""
    spot = _begin(job, take(job), _INT4_TIERS, _INT4_MANY)
    while spot.item < job[NUM_ITEMS]:
        _tile_int4(job, spot.row, spot.rows, spot.block, spot.blocks, spot.next_block)
        spot = _next(job, spot, _INT4_TIERS, _INT4_MANY)
