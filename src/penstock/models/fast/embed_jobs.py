"""Looking up a step's tokens, as jobs: one for each way in which a table of embeddings is kept.

In: token ids and a table; out: the residual stream in float32.  Items are rows of the batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.models.fast.byte_parts import widen_bytes
from penstock.models.fast.row_parts import as_float, floats_at, ints_at, pairs_at, widen_scaled
from penstock.models.fast.team import NUM_ITEMS, Job, take


@Job
def embed(job: Any) -> None:
    """x[T, H] float32 = table[ids[T]] bfloat16 * factor.  Arguments: ids, table, x, H, factor."""
    ids = ints_at(job[2])
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        widen_scaled(job[3] + 2 * job[5] * ids[row], as_float(job[6]), job[4] + 4 * job[5] * row, job[5] // 16)


@Job
def embed_packed(job: Any) -> None:
    """As ``embed``, from a table packed as weights are: [V/16][H/2][16][2]."""
    ids, size = ints_at(job[2]), job[5]
    words = np.empty(size // 2, np.uint32)
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        block = pairs_at(job[3] + 32 * size * (ids[row] // 16))
        for i in range(size // 2):
            words[i] = block[16 * i + ids[row] % 16]
        widen_scaled(words.ctypes.data, as_float(job[6]), job[4] + 4 * size * row, size // 16)


@Job
def embed_bytes(job: Any) -> None:
    """As ``embed``, from a table packed in eight bits: [V/16][H/4][16][4].  A last argument: scales [V]."""
    ids, size, scales = ints_at(job[2]), job[5], floats_at(job[7])
    words = np.empty(size // 4, np.uint32)
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        block = pairs_at(job[3] + 16 * size * (ids[row] // 16))
        for i in range(size // 4):
            words[i] = block[16 * i + ids[row] % 16]
        widen_bytes(words.ctypes.data, scales[ids[row]] * as_float(job[6]), job[4] + 4 * size * row, size // 16)


JOBS = embed, embed_packed, embed_bytes
