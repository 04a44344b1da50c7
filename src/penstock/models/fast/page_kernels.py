"""Keys and values into packed pages, whose layouts pages.py has.

In: addresses of keys and values [D] float32, and of one head's page, whose numbers have 2 bytes (bfloat16) or 1 (int8);
out: nothing, the page is written.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import carray

from penstock.models.fast.attention_parts import narrow
from penstock.models.fast.byte_parts import quantise_float32
from penstock.models.fast.compiled import compiled
from penstock.models.fast.page_parts import store_byte_halves, store_halves
from penstock.models.fast.page_products import Bits, Numbers
from penstock.models.fast.pages import SCALE_BYTES, TILE
from penstock.models.fast.row_parts import bits_at, pairs_at, widen
from penstock.models.fast.simd import LINE_BYTES

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint32]


@compiled
def store_packed(
    pages: Ints, slots: Ints, k: Bits, v: Bits, keys: Numbers, values: Numbers, page_tokens: int, first: int, end: int
) -> None:
    """Write k, v [T, Hkv, D] bfloat16 of rows ``first`` .. ``end - 1`` at pages [T], slots [T]."""
    size, number_bytes = k.shape[2], keys.itemsize
    wide, spare = np.empty(size, np.float32), np.empty(size // 2, np.uint32)
    for row in range(first, end):
        page, slot, alone = pages[row], slots[row], is_alone(pages, slots, row)
        for head in range(k.shape[1]):
            widen(k[row, head].ctypes.data, wide.ctypes.data, size // TILE)
            store_key(wide.ctypes.data, keys[page, head].ctypes.data, slot, page_tokens, number_bytes, spare)
            widen(v[row, head].ctypes.data, wide.ctypes.data, size // TILE)
            store_value(wide.ctypes.data, values[page, head].ctypes.data, slot, page_tokens, number_bytes, alone, spare)


@compiled
def is_alone(pages: Ints, slots: Ints, row: int) -> bool:
    """Whether a row's value is the first of two that are read together, and no row of the step brings the second.

    In bfloat16 the second then gets a zero: what was there before may be NaN.
    """
    if slots[row] % 2:
        return False
    return bool(row + 1 == len(pages) or pages[row + 1] != pages[row] or slots[row + 1] != slots[row] + 1)


@compiled
def store_key(key: int, page: int, slot: int, page_tokens: int, number_bytes: int, spare: Words) -> None:
    """The key at address ``key`` into its lane of the page at address ``page``.  ``spare`` [D / 2]."""
    size, lane = 2 * len(spare), slot % TILE
    tile = page + slot // TILE * TILE * size * number_bytes
    if number_bytes == 1:
        _narrow(key, page, slot, page_tokens, spare)
        words, byte_pairs = carray(bits_at(spare.ctypes.data), (size // 2,)), carray(bits_at(tile), (size // 2, TILE))
        for i in range(size // 2):
            byte_pairs[i, lane] = words[i]
    else:
        narrow(key, np.float32(1.0), spare.ctypes.data, size // TILE)
        pairs = carray(pairs_at(tile), (size // 2, TILE))
        for i in range(size // 2):
            pairs[i, lane] = spare[i]


@compiled
def store_value(
    value: int, page: int, slot: int, page_tokens: int, number_bytes: int, alone: bool, spare: Words
) -> None:
    """The value at address ``value`` into its row of the page; ``spare`` [D / 2], ``alone`` as ``is_alone`` has it."""
    groups, depth = 2 * len(spare) // TILE, 4 // number_bytes
    row = page + slot // depth * groups * LINE_BYTES
    if number_bytes == 1:
        _narrow(value, page, slot, page_tokens, spare)
        target = row + slot % depth // 2 * (LINE_BYTES // 2)
        store_byte_halves(spare.ctypes.data, target, groups, LINE_BYTES, slot % 2)
    else:
        store_halves(value, row, groups, slot % depth, int(alone))


@compiled
def _narrow(vector: int, page: int, slot: int, page_tokens: int, to: Words) -> None:
    """A vector [D] float32 as bytes, and its scale, which goes behind the page's numbers."""
    size, total = 2 * len(to), np.empty(1, np.float32)
    scale_at = page + page_tokens * size + SCALE_BYTES * slot
    quantise_float32(vector, to.ctypes.data, scale_at, total.ctypes.data, 1, size // TILE, 0)
