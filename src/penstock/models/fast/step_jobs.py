"""The parts of a step between its matrix products, as jobs: rows in float32, fused, rounded to bfloat16 once.

In: addresses and sizes in a job's arguments, named by the lists below; out: rows.  Items are rows of the batch.
Sizes are multiples of 16.  Rows of float32 and of bfloat16 lie end to end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from penstock.models.fast.attention_kernels import compiled, store_pairs
from penstock.models.fast.attention_parts import narrow
from penstock.models.fast.row_parts import (
    add_squares,
    as_float,
    bits_at,
    floats_at,
    gelu_tanh,
    ints_at,
    pairs_at,
    scaled,
    silu,
    squares,
    widen,
)
from penstock.models.fast.team import NUM_ITEMS, Job, take


@Job
def embed(job: Any) -> None:
    """x[T, H] float32 = table[ids[T]] bfloat16.  Arguments: ids, table, x, H."""
    ids = ints_at(job[2])
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        widen(job[3] + 2 * job[5] * ids[row], job[4] + 4 * job[5] * row, job[5] // 16)


@Job
def embed_packed(job: Any) -> None:
    """As ``embed``, from a table packed as weights are: [V/16][H/2][16][2].  Arguments: ids, table, x, H."""
    ids, size = ints_at(job[2]), job[5]
    words = np.empty(size // 2, np.uint32)
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        block = pairs_at(job[3] + 32 * size * (ids[row] // 16))
        for i in range(size // 2):
            words[i] = block[16 * i + ids[row] % 16]
        widen(words.ctypes.data, job[4] + 4 * size * row, size // 16)


@Job
def rotation(job: Any) -> None:
    """cos, sin [T, F] float32 of positions[T] * frequencies[F], times an amplitude.

    Arguments: positions, frequencies, cos, sin, F, amplitude.
    """
    size, amplitude = job[6], as_float(job[7])
    positions, frequencies = ints_at(job[2]), floats_at(job[3])
    cos, sin = floats_at(job[4]), floats_at(job[5])
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        position = np.float32(positions[row])
        for i in range(size):
            angle = position * frequencies[i]
            cos[row * size + i] = amplitude * np.float32(math.cos(angle))
            sin[row * size + i] = amplitude * np.float32(math.sin(angle))


@Job
def add_norm(job: Any) -> None:
    """x += change * factor, and out = RMSNorm(x) * weight: x, change [T, H] and weight [H] float32, out bfloat16.

    Arguments: x, change (0: none), factor, weight, out, H, eps.
    """
    size = job[7]
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        x = job[2] + 4 * size * row
        if job[3]:
            total = add_squares(x, job[3] + 4 * size * row, as_float(job[4]), size // 16)
        else:
            total = squares(x, size // 16)
        scale = np.float32(1.0) / np.sqrt(total / np.float32(size) + as_float(job[8]))
        scaled(x, job[5], scale, job[6] + 2 * size * row, size // 16)


@Job
def prepare(job: Any) -> None:
    """Queries and keys normalised and turned; queries to ``q``, keys and values into their pages.

    qkv [T, (Hq + 2 Hkv) * D] float32, q [T, Hq, D] bfloat16; norm weights [D] float32; cos, sin [T, F].
    Arguments: qkv, q, keys, values, pages, slots, cos, sin (0: no turn), query and key norm (0: none), eps, Hq, Hkv,
    D, F, S, P.
    """
    num_heads, num_kv_heads, size, half, page_tokens = job[13], job[14], job[15], job[16], job[17]
    pages, slots = ints_at(job[6]), ints_at(job[7])
    keys = carray(pairs_at(job[4]), (job[18], num_kv_heads, page_tokens // 16, size // 2, 16))
    values = carray(bits_at(job[5]), (job[18], num_kv_heads, page_tokens // 2, size, 2))
    head, rounded = np.empty(size, np.float32), np.empty(size, np.uint16)
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        page, slot = pages[row], slots[row]
        alone = slot % 2 == 0 and (row + 1 == job[NUM_ITEMS] or pages[row + 1] != page or slots[row + 1] != slot + 1)
        source = job[2] + 4 * row * (num_heads + 2 * num_kv_heads) * size
        for h in range(num_heads + num_kv_heads):
            _turned(
                source + 4 * h * size,
                job[10] if h < num_heads else job[11],
                as_float(job[12]),
                job[8] + 4 * row * half if job[8] else 0,
                job[9] + 4 * row * half,
                half,
                head,
            )
            if h < num_heads:
                narrow(head.ctypes.data, np.float32(1.0), job[3] + 2 * (row * num_heads + h) * size, size // 16)
            else:
                narrow(head.ctypes.data, np.float32(1.0), rounded.ctypes.data, size // 16)
                store_pairs(rounded.view(np.uint32), keys[page, h - num_heads, slot // 16], slot % 16)
        for h in range(num_kv_heads):
            narrow(source + 4 * (num_heads + num_kv_heads + h) * size, np.float32(1.0), rounded.ctypes.data, size // 16)
            target = values[page, h, slot // 2]
            for i in range(size):
                target[i, slot % 2] = rounded[i]
            if alone:
                for i in range(size):
                    target[i, 1] = np.uint16(0)


@compiled
def _turned(source: int, weight: int, eps: np.float32, cos: int, sin: int, half: int, head: Any) -> None:
    """head[D] = source[D], normalised with ``weight`` and turned; 0 where one of these is not wanted."""
    values = carray(floats_at(source), head.shape)
    if weight:
        weights = carray(floats_at(weight), head.shape)
        scale = np.float32(1.0) / np.sqrt(squares(source, len(head) // 16) / np.float32(len(head)) + eps)
        for i in range(len(head)):
            head[i] = values[i] * scale * weights[i]
    else:
        for i in range(len(head)):
            head[i] = values[i]
    if cos:
        cosines, sines = carray(floats_at(cos), (half,)), carray(floats_at(sin), (half,))
        for i in range(half):
            first, second = head[i], head[half + i]
            head[i] = first * cosines[i] - second * sines[i]
            head[half + i] = second * cosines[i] + first * sines[i]


@Job
def gated_silu(job: Any) -> None:
    """out[T, I] bfloat16 = silu(first half of gate_up[T, 2I]) * second half.  Arguments: gate_up, out, I."""
    size = job[4]
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        gate = job[2] + 8 * size * row
        silu(gate, gate + 4 * size, job[3] + 2 * size * row, size // 16)


@Job
def gated_gelu_tanh(job: Any) -> None:
    """As gated_silu, with GELU's approximation by tanh."""
    size = job[4]
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        gate = job[2] + 8 * size * row
        gelu_tanh(gate, gate + 4 * size, job[3] + 2 * size * row, size // 16)


JOBS = (
    embed,
    embed_packed,
    rotation,
    add_norm,
    prepare,
    gated_silu,
    gated_gelu_tanh,
)
