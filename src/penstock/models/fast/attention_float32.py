"""Attention over KV pages of float32, for any CPU: the loops over works, pages and queries.

In: numpy arrays; out: the mixed values of every batch row, or parts that attention_jobs puts together.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from penstock.models.fast.attention_kernels import HIDDEN32
from penstock.models.fast.attention_parts import take_next
from penstock.models.fast.compiled import compiled
from penstock.models.fast.works import END_KEY, FIRST_KEY, MEMBERS, NUM_MEMBERS, PAGES, PART

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@compiled
def store_float32(
    pages: Ints, slots: Ints, k: Floats, v: Floats, keys: Floats, values: Floats, first: int, end: int
) -> None:
    """As page_kernels.store_packed, for pages of float32."""
    for row in range(first, end):
        for head in range(k.shape[1]):
            for i in range(k.shape[2]):
                keys[pages[row], head, slots[row], i] = k[row, head, i]
                values[pages[row], head, slots[row], i] = v[row, head, i]


@compiled
def attend_float32(
    counter: Ints,
    works: Ints,
    members: Ints,
    positions: Ints,
    table: Ints,
    q: Floats,
    keys: Floats,
    values: Floats,
    scale: np.float32,
    window: int,
    cap: np.float32,
    out: Floats,
    parts: Floats,
) -> None:
    """As attend_packed, for keys and values [P, Hkv, S, D] float32; no instruction of one kind of CPU is asked for."""
    num_kv_heads, page_tokens, head_dim = keys.shape[1], keys.shape[2], keys.shape[3]
    group = q.shape[1] // num_kv_heads
    scores, mixed = np.empty(page_tokens, np.float32), np.empty(head_dim, np.float32)
    while True:
        unit = take_next(counter.ctypes.data)
        if unit >= len(works) * num_kv_heads * group:
            return
        work, query = works[unit // (num_kv_heads * group)], unit % (num_kv_heads * group)
        head = query // group
        pages = table[work[PAGES] :]
        for member in range(work[NUM_MEMBERS]):
            row = members[work[MEMBERS] + member]
            position = positions[row]
            lowest = max(work[FIRST_KEY], position - window + 1) if window else work[FIRST_KEY]
            end_key = min(position + 1, work[END_KEY])
            peak, total = HIDDEN32, np.float32(0.0)
            mixed[:] = np.float32(0.0)
            for index in range(lowest // page_tokens, (end_key - 1) // page_tokens + 1):
                base = index * page_tokens
                first, end = max(lowest - base, 0), min(end_key - base, page_tokens)
                key, value = keys[pages[index], head], values[pages[index], head]
                highest = max(peak, _score(q[row, query], key, first, end, scale, cap, scores))
                shrink = np.float32(math.exp(peak - highest))
                total *= shrink
                mixed *= shrink
                peak = highest
                for j in range(first, end):
                    share = np.float32(math.exp(scores[j] - peak))
                    total += share
                    for i in range(head_dim):
                        mixed[i] += share * value[j, i]
            if work[PART] < 0:
                out[row, query] = mixed / total
            else:
                part = parts[work[PART] + member, query]
                part[:head_dim] = mixed
                part[head_dim], part[head_dim + 1] = peak, total


@compiled
def _score(
    query: Floats, key: Floats, first: int, end: int, scale: np.float32, cap: np.float32, scores: Floats
) -> np.float32:
    """scores[first:end] of a query [D] and a page's keys [S, D]; the highest of them."""
    highest = HIDDEN32
    for j in range(first, end):
        score = np.float32(0.0)
        for i in range(len(query)):
            score += query[i] * key[j, i]
        score *= scale
        if cap != np.float32(0.0):
            score = cap * np.float32(math.tanh(score / cap))
        scores[j] = score
        highest = max(highest, score)
    return highest
