"""Attention over packed KV pages: the loops over works, pages and queries.

In: numpy arrays; out: the mixed values of every batch row, or parts that attention_jobs puts together.
Works (see works.py) times KV heads are the units that threads take in turn; the next page is fetched while one is
computed.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from penstock.models.fast.attention_parts import fetch, narrow, take_next
from penstock.models.fast.compiled import compiled
from penstock.models.fast.page_products import Bits, Floats, Numbers, mix_page, score_page
from penstock.models.fast.pages import SCALE_BYTES, TILE
from penstock.models.fast.row_parts import widen_scaled
from penstock.models.fast.simd import LINE_BYTES
from penstock.models.fast.softmax_parts import HIDDEN, LOG2_E, absorb, cap_scores, times_scales, to_words
from penstock.models.fast.works import END_KEY, FIRST_KEY, MEMBERS, NUM_MEMBERS, PAGES, PART

Ints = npt.NDArray[np.int64]

_BLOCK_TOKENS = 128
"""Keys whose scores go into a softmax at a time."""

HIDDEN32 = np.float32(HIDDEN)


@compiled
def attend_packed(
    counter: Ints,
    works: Ints,
    members: Ints,
    positions: Ints,
    table: Ints,
    q: Bits,
    keys: Numbers,
    values: Numbers,
    page_tokens: int,
    scale: np.float32,
    window: int,
    cap: np.float32,
    out: Bits,
    parts: Floats,
) -> None:
    """Take units from ``counter`` until none is left.  All bits are bfloat16's; bytes have scales.

    works [W, 6]: fields as in works.py.  members: batch rows.  positions [T]: a row sees the keys up to its own
    position, and of those the last ``window`` (0: all).  table: pages.  q, out [T, Hq, D].
    keys, values: pages [P, *pages.page_shape].  ``cap`` 0: no softcap.
    parts [N, Hq, D + 2] float32: a row's part of a work: unscaled sums, peak and total.
    """
    num_kv_heads, head_dim = keys.shape[1], q.shape[2]
    num_units, group, most = len(works) * num_kv_heads, q.shape[1] // num_kv_heads, 0
    for w in range(len(works)):
        most = max(most, works[w, NUM_MEMBERS] * group)
    block_tokens = max(page_tokens, _BLOCK_TOKENS // page_tokens * page_tokens)
    queries, scores = np.empty((most, head_dim), np.float32), np.empty((most, block_tokens), np.float32)
    states, mixed = np.empty((most, 2), np.float32), np.empty((most, head_dim), np.float32)
    query_scales, share_scales = np.empty(most, np.float32), np.empty(most, np.float32)
    unit = take_next(counter.ctypes.data)
    while unit < num_units:
        following = take_next(counter.ctypes.data)
        work, head = works[unit // num_kv_heads], unit % num_kv_heads
        rows = members[work[MEMBERS] : work[MEMBERS] + work[NUM_MEMBERS]]
        pages, end_key, num_queries = table[work[PAGES] :], work[END_KEY], len(rows) * group
        _begin(rows, head, group, q, scale, queries, states, mixed)
        if keys.itemsize == 1:
            for i in range(num_queries):
                query_scales[i] = to_words(queries[i].ctypes.data, head_dim // TILE)
        first = work[FIRST_KEY] // page_tokens * page_tokens
        while first < end_key:
            end = min(first + block_tokens, end_key)
            _score_block(pages, head, keys, values, page_tokens, first, end, queries, query_scales, scores, num_queries)
            ahead = _ahead(works, table, keys, page_tokens, unit, following, first + block_tokens, 0)
            _absorb_block(work, rows, group, positions, first, end, window, cap, scores, states, mixed, ahead)
            if values.itemsize == 1:
                _shares_in_words(pages, head, values, page_tokens, first, end, scores, num_queries, share_scales)
            scales, sums = share_scales.ctypes.data, mixed.ctypes.data
            for base in range(first, end, page_tokens):
                nth, value = (base - first) // page_tokens, values[pages[base // page_tokens], head].ctypes.data
                ahead = _ahead(works, table, keys, page_tokens, unit, following, first + block_tokens, nth)
                at, num_tokens = scores.ctypes.data + 2 * values.itemsize * (base - first), min(page_tokens, end - base)
                if keys.itemsize == 1:
                    fetch(ahead + page_tokens * head_dim, page_tokens // TILE)
                mix_page(values, value, num_tokens, at, block_tokens, scales, sums, head_dim, num_queries, ahead)
            first = end
        _hand_out(work, rows, head, group, mixed, states, out, parts)
        unit = following


@compiled
def _begin(
    rows: Ints, head: int, group: int, q: Bits, scale: np.float32, queries: Floats, states: Floats, mixed: Floats
) -> None:
    """A unit's queries in float32, scaled so that scores are in units of ln 2; nothing absorbed yet."""
    head_dim = queries.shape[1]
    for i in range(len(rows) * group):
        query = q[rows[i // group], head * group + i % group].ctypes.data
        widen_scaled(query, scale * np.float32(LOG2_E), queries[i].ctypes.data, head_dim // TILE)
        states[i, 0], states[i, 1] = HIDDEN32, np.float32(0.0)
        mixed[i] = np.float32(0.0)


@compiled
def _ahead(
    works: Ints, table: Ints, keys: Numbers, page_tokens: int, unit: int, following: int, first: int, nth: int
) -> int:
    """The ``nth`` page's keys from ``first`` on, where a unit goes on there; else of the ``following`` unit."""
    num_kv_heads = keys.shape[1]
    work, head, place = works[unit // num_kv_heads], unit % num_kv_heads, first // page_tokens + nth
    if place * page_tokens >= work[END_KEY] and following < len(works) * num_kv_heads:
        work, head = works[following // num_kv_heads], following % num_kv_heads
        place = work[FIRST_KEY] // page_tokens + nth
    page = table[work[PAGES] + min(place, (work[END_KEY] - 1) // page_tokens)]
    address: int = keys[page, head].ctypes.data
    return address


@compiled
def _absorb_block(
    work: Ints,
    rows: Ints,
    group: int,
    positions: Ints,
    first: int,
    end: int,
    window: int,
    cap: np.float32,
    scores: Floats,
    states: Floats,
    mixed: Floats,
    ahead: int,
) -> None:
    """Scores of keys ``first`` .. ``end`` - 1 become shares of each row that sees them; fetches from ``ahead``."""
    num_tiles = (end - first + TILE - 1) // TILE
    for i in range(len(rows) * group):
        position = positions[rows[i // group]]
        lowest = max(work[FIRST_KEY], position - window + 1) if window else work[FIRST_KEY]
        score, last = scores[i].ctypes.data, min(position, end - 1)
        if cap != np.float32(0.0):
            cap_scores(score, num_tiles, cap)
        near = ahead + i % 4 * num_tiles * 2 * LINE_BYTES
        shrink = absorb(score, states[i].ctypes.data, num_tiles, lowest - first, last - first, near)
        if shrink != np.float32(1.0):
            mixed[i] *= shrink


@compiled
def _score_block(
    pages: Ints,
    head: int,
    keys: Numbers,
    values: Numbers,
    page_tokens: int,
    first: int,
    end: int,
    queries: Floats,
    scales: Floats,
    scores: Floats,
    num_queries: int,
) -> None:
    """Scores of keys ``first`` .. ``end`` - 1, whose values are fetched; ``scales``: of queries that are int16."""
    head_dim, width = queries.shape[1], scores.shape[1]
    num_numbers, query, score = page_tokens * head_dim, queries.ctypes.data, scores.ctypes.data
    for base in range(first, end, page_tokens):
        page, num_tiles = pages[base // page_tokens], (min(page_tokens, end - base) + TILE - 1) // TILE
        key, value = keys[page, head].ctypes.data, values[page, head].ctypes.data
        at = score + 4 * (base - first)
        score_page(keys, key, num_tiles, query, head_dim, at, width, num_queries, value)
        if keys.itemsize == 1:
            fetch(value + num_numbers, num_tiles)
            for i in range(num_queries):
                times_scales(at + 4 * width * i, num_tiles, key + num_numbers, scales[i])


@compiled
def _shares_in_words(
    pages: Ints,
    head: int,
    values: Numbers,
    page_tokens: int,
    first: int,
    end: int,
    shares: Floats,
    num_queries: int,
    scales: Floats,
) -> None:
    """Shares of keys ``first`` .. ``end`` - 1 times their values' scales, as int16 of ``scales``, a query's each."""
    scales_at = values.shape[2] - SCALE_BYTES * page_tokens
    for base in range(first, end, page_tokens):
        num_tiles = (min(page_tokens, end - base) + TILE - 1) // TILE
        of_values = values[pages[base // page_tokens], head].ctypes.data + scales_at
        for i in range(num_queries):
            times_scales(shares[i].ctypes.data + 4 * (base - first), num_tiles, of_values, np.float32(1.0))
    for i in range(num_queries):
        scales[i] = to_words(shares[i].ctypes.data, (end - first + TILE - 1) // TILE)


@compiled
def _hand_out(
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
            part[head_dim], part[head_dim + 1] = states[i, 0] / np.float32(LOG2_E), states[i, 1]
