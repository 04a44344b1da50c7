"""Keys and values into packed pages, whose layouts pages.py has.

In: addresses of keys and values [D] float32, and of one head's page, whose numbers have 2 bytes (bfloat16) or 1 (int8);
out: nothing, the page is written.
Addresses, and not arrays, since counting the references to an array takes longer than a vector.
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


@compiled
def store_packed(
    pages: Ints, slots: Ints, k: Bits, v: Bits, keys: Numbers, values: Numbers, page_tokens: int, first: int, end: int
) -> None:
    """Write k, v [T, Hkv, D] bfloat16 of rows ``first`` .. ``end - 1`` at pages [T], slots [T]."""
    size, number_bytes = k.shape[2], keys.itemsize
    wide, room = np.empty(size, np.float32), np.empty(size, np.uint16)
    vector, spare = wide.ctypes.data, room.ctypes.data
    for row in range(first, end):
        page, slot, alone = pages[row], slots[row], is_alone(pages, slots, row)
        for head in range(k.shape[1]):
            widen(k[row, head].ctypes.data, vector, size // TILE)
            store_key(vector, keys[page, head].ctypes.data, slot, page_tokens, size, number_bytes, spare)
            widen(v[row, head].ctypes.data, vector, size // TILE)
            value_page = values[page, head].ctypes.data
            store_value(vector, value_page, slot, page_tokens, size, number_bytes, alone, spare)
    wide[0], room[0] = np.float32(0.0), np.uint16(0)  # what addresses alone refer to would be freed before


@compiled
def is_alone(pages: Ints, slots: Ints, row: int) -> bool:
    """Whether a row's value is the first of two that are read together, and no row of the step brings the second.

    In bfloat16 the second then gets a zero: what was there before may be NaN.
    """
    if slots[row] % 2:
        return False
    return bool(row + 1 == len(pages) or pages[row + 1] != pages[row] or slots[row + 1] != slots[row] + 1)


@compiled
def store_key(key: int, page: int, slot: int, page_tokens: int, size: int, number_bytes: int, spare: int) -> None:
    """The key [size] at address ``key`` into its lane of the page at address ``page``.  ``spare`` [size] uint16."""
    lane, tile = slot % TILE, page + slot // TILE * TILE * size * number_bytes
    if number_bytes == 1:
        _narrow(key, page, slot, page_tokens, size, spare)
        words, byte_pairs = carray(bits_at(spare), (size // 2,)), carray(bits_at(tile), (size // 2, TILE))
        for i in range(size // 2):
            byte_pairs[i, lane] = words[i]
    else:
        narrow(key, np.float32(1.0), spare, size // TILE)
        numbers, pairs = carray(pairs_at(spare), (size // 2,)), carray(pairs_at(tile), (size // 2, TILE))
        for i in range(size // 2):
            pairs[i, lane] = numbers[i]


@compiled
def store_value(
    value: int, page: int, slot: int, page_tokens: int, size: int, number_bytes: int, alone: bool, spare: int
) -> None:
    """The value [size] into its row of the page; addresses and ``spare`` as above, ``alone`` as ``is_alone`` has it."""
    groups, depth = size // TILE, 4 // number_bytes
    row = page + slot // depth * groups * LINE_BYTES
    if number_bytes == 1:
        _narrow(value, page, slot, page_tokens, size, spare)
        target = row + slot % depth // 2 * (LINE_BYTES // 2)
        store_byte_halves(spare, target, groups, LINE_BYTES, slot % 2)
    else:
        store_halves(value, row, groups, slot % depth, int(alone))


@compiled
def _narrow(vector: int, page: int, slot: int, page_tokens: int, size: int, spare: int) -> None:
    """A vector [size] float32 as bytes in ``spare``, and its scale, which goes behind the page's numbers."""
    scale_at, total_at = page + page_tokens * size + SCALE_BYTES * slot, spare + size
    quantise_float32(vector, spare, scale_at, total_at, 1, size // TILE, 0)
