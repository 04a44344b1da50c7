"""Queries, keys and values of a step, readied for attention: a job among those of step_jobs.py.

In: addresses and sizes in a job's arguments; out: queries, and keys and values in their pages.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray

from penstock.models.fast.attention_parts import narrow
from penstock.models.fast.compiled import compiled
from penstock.models.fast.norms import inverse_root, normalise
from penstock.models.fast.page_kernels import is_alone, store_key, store_value
from penstock.models.fast.page_parts import page_length
from penstock.models.fast.row_parts import as_float, copy, floats_at, ints_at, scaled, squares, turn
from penstock.models.fast.team import NUM_ITEMS, Job, take

QKV, QUERIES, KEYS, VALUES, PAGES, SLOTS, COS, SIN, QUERY_NORM, KEY_NORM, EPS = range(2, 13)
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, TURNED, PAGE_TOKENS, NUMBER_BYTES = range(13, 19)
ALL_QUERIES, ALL_KEYS, NUM_ROWS, ITEM_ROWS = range(19, 23)
"""Arguments of ``prepare``.  ``COS`` 0: no turn; a norm 0: none.  ``TURNED``: F; ``NUMBER_BYTES``: in pages, 2 or 1."""


@Job
def prepare(job: Any) -> None:
    """Queries and keys normalised and turned; queries to ``q``, keys and values into their pages.

    qkv [T, (Hq + 2 Hkv) * D] float32, q [T, Hq, D] bfloat16; norm weights [D] float32, or, where all heads are
    normalised at once, [Hq * D] and [Hkv * D]; cos, sin [T, F].
    Items are rows that follow one another: neighbours in a page share its lines.
    """
    size, num_heads, num_kv_heads = job[HEAD_DIM], job[NUM_HEADS], job[NUM_KV_HEADS]
    one_head, room = np.empty(size, np.float32), np.empty(size, np.uint16)
    head, spare = one_head.ctypes.data, room.ctypes.data
    query_norm, key_norm = 0 if job[ALL_QUERIES] else job[QUERY_NORM], 0 if job[ALL_KEYS] else job[KEY_NORM]
    item = take(job)
    while item < job[NUM_ITEMS]:
        first, end = item * job[ITEM_ROWS], min(job[NUM_ROWS], (item + 1) * job[ITEM_ROWS])
        for row in range(first, end):
            _normalise_all(job, row)
        # One head of all rows at a time: the lines of a page that they share stay in the first cache.
        for h in range(num_heads):
            for row in range(first, end):
                _turned(job, row, h, query_norm, head)
                target = job[QUERIES] + 2 * (row * num_heads + h) * size
                narrow(head, np.float32(1.0), target, size // 16)
        for h in range(num_kv_heads):
            for row in range(first, end):
                _turned(job, row, num_heads + h, key_norm, head)
                page, slot = _page(job, KEYS, row, h), ints_at(job[SLOTS])[row]
                store_key(head, page, slot, job[PAGE_TOKENS], size, job[NUMBER_BYTES], spare)
        for h in range(num_kv_heads):
            for row in range(first, end):
                _store_value(job, row, h, spare)
        item = take(job)
    one_head[0], room[0] = np.float32(0.0), np.uint16(0)  # what addresses alone refer to would be freed before


@compiled
def _head(job: Any, row: int, h: int) -> int:
    """Where head ``h`` of a row's queries, keys and values is."""
    return int(job[QKV] + 4 * job[HEAD_DIM] * ((job[NUM_HEADS] + 2 * job[NUM_KV_HEADS]) * row + h))


@compiled
def _page(job: Any, base: int, row: int, h: int) -> int:
    """The page that KV head ``h`` of a row has among those of argument ``base``."""
    page_bytes = job[NUMBER_BYTES] * page_length(job[PAGE_TOKENS], job[HEAD_DIM], job[NUMBER_BYTES])
    return int(job[base] + page_bytes * (ints_at(job[PAGES])[row] * job[NUM_KV_HEADS] + h))


@compiled
def _normalise_all(job: Any, row: int) -> None:
    """A row's queries, and its keys, where all of their heads are normalised at once."""
    eps = as_float(job[EPS])
    if job[ALL_QUERIES]:
        normalise(_head(job, row, 0), job[QUERY_NORM], job[NUM_HEADS] * job[HEAD_DIM], eps)
    if job[ALL_KEYS]:
        normalise(_head(job, row, job[NUM_HEADS]), job[KEY_NORM], job[NUM_KV_HEADS] * job[HEAD_DIM], eps)


@compiled
def _turned(job: Any, row: int, h: int, norm: int, to: int) -> None:
    """to[D]: head ``h`` of a row, normalised with ``norm`` (0: as it is) and turned."""
    source, size, half = _head(job, row, h), job[HEAD_DIM], job[TURNED]
    if norm:
        scaled(source, norm, inverse_root(squares(source, size // 16), size, as_float(job[EPS])), to, size // 16)
    else:
        copy(source, to, size // 16)
    if not job[COS]:
        return
    cos, sin = job[COS] + 4 * row * half, job[SIN] + 4 * row * half
    if half % 16 == 0:
        turn(to, cos, sin, half // 16)
        return
    head, cosines, sines = (
        carray(floats_at(to), (size,)),
        carray(floats_at(cos), (half,)),
        carray(floats_at(sin), (half,)),
    )
    for i in range(half):
        first, second = head[i], head[half + i]
        head[i] = first * cosines[i] - second * sines[i]
        head[half + i] = second * cosines[i] + first * sines[i]


@compiled
def _store_value(job: Any, row: int, h: int, spare: int) -> None:
    pages, slots = carray(ints_at(job[PAGES]), (job[NUM_ROWS],)), carray(ints_at(job[SLOTS]), (job[NUM_ROWS],))
    value, page = _head(job, row, job[NUM_HEADS] + job[NUM_KV_HEADS] + h), _page(job, VALUES, row, h)
    alone = is_alone(pages, slots, row)
    store_value(value, page, slots[row], job[PAGE_TOKENS], job[HEAD_DIM], job[NUMBER_BYTES], alone, spare)
