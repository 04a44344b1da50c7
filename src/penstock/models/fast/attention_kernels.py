"""Attention over KV pages of bfloat16: the loops over works, pages and queries.

In: numpy arrays; out: the mixed values of every batch row, or parts that attention_jobs puts together.
Works (see works.py) times KV heads are the units that threads take in turn; the next page is fetched while one is
computed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penstock.models.fast.attention_parts import (
    HIDDEN,
    absorb,
    mix_1_1,
    mix_1_2,
    mix_1_4,
    mix_2_1,
    mix_2_2,
    mix_2_4,
    mix_4_1,
    mix_4_2,
    mix_4_4,
    narrow,
    score_1,
    score_2,
    score_4,
    score_8,
    take_next,
)
from penstock.models.fast.compiled import compiled
from penstock.models.fast.works import END_KEY, FIRST_KEY, MEMBERS, NUM_MEMBERS, PAGES, PART

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.uint16]
Words = npt.NDArray[np.uint32]

TILE = 16
"""Keys of one register; a page's tokens are a multiple of it, and so is a head's size."""

HIDDEN32 = np.float32(HIDDEN)


@compiled
def attend_bf16(
    counter: Ints,
    works: Ints,
    members: Ints,
    positions: Ints,
    table: Ints,
    q: Bits,
    keys: Bits,
    values: Bits,
    scale: np.float32,
    window: int,
    cap: np.float32,
    out: Bits,
    parts: Floats,
) -> None:
    """Take units from ``counter`` until none is left.  All bits are bfloat16's.

    works [W, 6]: see above.  members: batch rows.  positions [T]: a row sees the keys up to its own position, and of
    those the last ``window`` (0: all).  table: pages.  q, out [T, Hq, D].
    keys [P, Hkv, S/16, D/2, 16, 2], values [P, Hkv, S/2, D, 2].  ``cap`` 0: no softcap.
    parts [N, Hq, D + 2] float32: a row's part of a work: unscaled sums, peak and total.
    """
    num_kv_heads, num_tiles, head_dim = keys.shape[1], keys.shape[2], 2 * keys.shape[3]
    page_tokens, group = num_tiles * TILE, q.shape[1] // keys.shape[1]
    most = 0
    for w in range(len(works)):
        most = max(most, works[w, NUM_MEMBERS])
    most *= group
    queries = np.empty((most, head_dim), np.uint16)
    scores, shares = np.empty((most, page_tokens), np.float32), np.empty((most, page_tokens), np.uint16)
    states, mixed = np.empty((most, 2), np.float32), np.empty((most, head_dim), np.float32)
    while True:
        unit = take_next(counter.ctypes.data)
        if unit >= len(works) * num_kv_heads:
            return
        work, head = works[unit // num_kv_heads], unit % num_kv_heads
        rows = members[work[MEMBERS] : work[MEMBERS] + work[NUM_MEMBERS]]
        num_queries = len(rows) * group
        for i in range(num_queries):
            queries[i] = q[rows[i // group], head * group + i % group]
            states[i, 0], states[i, 1] = HIDDEN32, np.float32(0.0)
            mixed[i] = np.float32(0.0)
        pages = table[work[PAGES] :]
        first_page, end_page = work[FIRST_KEY] // page_tokens, (work[END_KEY] - 1) // page_tokens + 1
        for index in range(first_page, end_page):
            first, end = index * page_tokens, min((index + 1) * page_tokens, work[END_KEY])
            page, following = pages[index], pages[min(index + 1, end_page - 1)]
            used_tiles = (end - first + TILE - 1) // TILE
            _score_page(
                keys[page, head].ctypes.data, queries, scores, num_queries, used_tiles, values[page, head].ctypes.data
            )
            for i in range(num_queries):
                position = positions[rows[i // group]]
                lowest = max(work[FIRST_KEY], position - window + 1) if window else work[FIRST_KEY]
                shrink = absorb(
                    scores[i].ctypes.data,
                    shares[i].ctypes.data,
                    states[i].ctypes.data,
                    used_tiles,
                    scale,
                    cap,
                    lowest - first,
                    min(position, end - 1) - first,
                )
                if shrink != np.float32(1.0):
                    mixed[i] *= shrink
            _mix_page(
                values[page, head].ctypes.data,
                shares,
                mixed,
                num_queries,
                (end - first + 1) // 2,
                keys[following, head].ctypes.data,
            )
        _hand_out_bf16(work, rows, head, group, mixed, states, out, parts)


@compiled
def _score_page(keys: int, queries: Bits, scores: Floats, num_queries: int, num_tiles: int, ahead: int) -> None:
    """scores[i, :16 * num_tiles] of all queries; fetches as many bytes from ``ahead``."""
    head_dim, page_tokens = queries.shape[1], scores.shape[1]
    query_bytes, score_bytes, num_pairs = 2 * head_dim, 4 * page_tokens, head_dim // 2
    for tile in range(num_tiles):
        offset = tile * TILE * query_bytes
        done = 0
        while done < num_queries:
            query, score = queries.ctypes.data + done * query_bytes, scores.ctypes.data + done * score_bytes + tile * 64
            left = num_queries - done
            if left >= 8:
                score_8(keys + offset, query, query_bytes, score, score_bytes, num_pairs, ahead + offset)
                done += 8
            elif left >= 4:
                score_4(keys + offset, query, query_bytes, score, score_bytes, num_pairs, ahead + offset)
                done += 4
            elif left >= 2:
                score_2(keys + offset, query, query_bytes, score, score_bytes, num_pairs, ahead + offset)
                done += 2
            else:
                score_1(keys + offset, query, query_bytes, score, score_bytes, num_pairs, ahead + offset)
                done += 1


@compiled
def _mix_page(values: int, shares: Bits, mixed: Floats, num_queries: int, num_pairs: int, ahead: int) -> None:
    """mixed[i] += shares[i] @ values for all queries; fetches as many bytes from ``ahead``."""
    head_dim, page_tokens = mixed.shape[1], shares.shape[1]
    row, share_bytes, mixed_bytes = 4 * head_dim, 2 * page_tokens, 4 * head_dim
    first = 0
    while first < head_dim:
        left = (head_dim - first) // TILE
        num_groups = 4 if left >= 4 else (2 if left >= 2 else 1)
        value, offset = values + 4 * first, 4 * first
        done = 0
        while done < num_queries:
            share, sums = shares.ctypes.data + done * share_bytes, mixed.ctypes.data + done * mixed_bytes + offset
            num = 4 if num_queries - done >= 4 else (2 if num_queries - done >= 2 else 1)
            near = ahead + offset
            if num == 4 and num_groups == 4:
                mix_4_4(value, row, share, share_bytes, sums, mixed_bytes, num_pairs, near)
            elif num == 4 and num_groups == 2:
                mix_4_2(value, row, share, share_bytes, sums, mixed_bytes, num_pairs, near)
            elif num == 4:
                mix_4_1(value, row, share, share_bytes, sums, mixed_bytes, num_pairs, near)
            elif num == 2 and num_groups == 4:
                mix_2_4(value, row, share, share_bytes, sums, mixed_bytes, num_pairs, near)
            elif num == 2 and num_groups == 2:
                mix_2_2(value, row, share, share_bytes, sums, mixed_bytes, num_pairs, near)
            elif num == 2:
                mix_2_1(value, row, share, share_bytes, sums, mixed_bytes, num_pairs, near)
            elif num_groups == 4:
                mix_1_4(value, row, share, share_bytes, sums, mixed_bytes, num_pairs, near)
            elif num_groups == 2:
                mix_1_2(value, row, share, share_bytes, sums, mixed_bytes, num_pairs, near)
            else:
                mix_1_1(value, row, share, share_bytes, sums, mixed_bytes, num_pairs, near)
            done += num
        first += num_groups * TILE


@compiled
def _hand_out_bf16(
    work: Ints, rows: Ints, head: int, group: int, mixed: Floats, states: Floats, out: Bits, parts: Floats
) -> None:
    """A unit's result, divided by its totals into ``out``, or as it is into ``parts``."""
    head_dim = mixed.shape[1]
    for i in range(len(rows) * group):
        query = head * group + i % group
        if work[PART] < 0:
            target = out[rows[i // group], query].ctypes.data
            narrow(mixed[i].ctypes.data, np.float32(1.0) / states[i, 1], target, head_dim // TILE)
        else:
            part = parts[work[PART] + i // group, query]
            part[:head_dim] = mixed[i]
            part[head_dim], part[head_dim + 1] = states[i, 0], states[i, 1]


@compiled
def store_bf16(pages: Ints, slots: Ints, k: Bits, v: Bits, keys: Bits, values: Bits, first: int, end: int) -> None:
    """Write k, v [T, Hkv, D] of rows ``first`` .. ``end - 1`` at pages [T], slots [T]; layouts as in attend_bf16.

    A value whose neighbour in the page is not among the step's rows gets a zero there, since the two are read as one.
    """
    num_kv_heads, head_dim = k.shape[1], k.shape[2]
    for row in range(first, end):
        page, slot = pages[row], slots[row]
        tile, lane, pair, half = slot // TILE, slot % TILE, slot // 2, slot % 2
        alone = half == 0 and (row + 1 == len(pages) or pages[row + 1] != page or slots[row + 1] != slot + 1)
        for head in range(num_kv_heads):
            for i in range(head_dim // 2):
                keys[page, head, tile, i, lane, 0] = k[row, head, 2 * i]
                keys[page, head, tile, i, lane, 1] = k[row, head, 2 * i + 1]
            for i in range(head_dim):
                values[page, head, pair, i, half] = v[row, head, i]
            if alone:
                for i in range(head_dim):
                    values[page, head, pair, i, 1] = np.uint16(0)


@compiled
def store_pairs(pairs: Words, tile: Words, lane: int) -> None:
    """One key [D/2] of pairs of bfloat16 into its lane of a tile [D/2, 16]."""
    for i in range(len(pairs)):
        tile[i, lane] = pairs[i]
