"""Attention over pages as jobs: the kernels' loops over addresses, and parts put together.

In: addresses and sizes in a job's arguments; out: the mixed values of every batch row.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from numba import carray

from penstock.models.fast.attention_float32 import attend_float32
from penstock.models.fast.attention_kernels import HIDDEN32, attend_packed
from penstock.models.fast.attention_parts import narrow
from penstock.models.fast.compiled import compiled
from penstock.models.fast.page_parts import page_length
from penstock.models.fast.page_products import Numbers
from penstock.models.fast.pages import TILE
from penstock.models.fast.row_parts import as_float, bits_at, bytes_at, floats_at, ints_at
from penstock.models.fast.team import NUM_ITEMS, Job, take

_MANY = 1 << 40
"""Length of a list that is as long as it needs to be."""

WORKS, NUM_WORKS, MEMBERS, POSITIONS, TABLE, QUERIES, KEYS, VALUES, SCALE, WINDOW, CAP, OUT, PARTS, NUM_ROWS = range(
    2, 16
)
NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, PAGE_TOKENS, NUM_PAGES = range(16, 21)
"""Arguments of ``attention_bf16``, ``attention_int8`` and ``attention_float32``, as attention_kernels names them;
floats by their bits.  Items are units: works times KV heads, times queries of a KV head in float32."""

SPLITS, LISTED, SPLIT_PARTS, COMBINED, COMBINED_HEADS, COMBINED_DIM = range(2, 8)
"""Arguments of ``combine`` and ``combine_float32``: splits [N, 3] (batch row, where its parts are listed, how many),
listed (indices into parts [., Hq, D + 2]), out [T, Hq, D], Hq, D.  Items are splits."""


@Job
def attention_bf16(job: Any) -> None:
    """attention_kernels.attend_packed over pages of bfloat16."""
    page = job[NUM_PAGES], job[NUM_KV_HEADS], page_length(job[PAGE_TOKENS], job[HEAD_DIM], 2)
    _attend_packed(job, carray(bits_at(job[KEYS]), page), carray(bits_at(job[VALUES]), page))


@Job
def attention_int8(job: Any) -> None:
    """attention_kernels.attend_packed over pages of bytes and scales."""
    page = job[NUM_PAGES], job[NUM_KV_HEADS], page_length(job[PAGE_TOKENS], job[HEAD_DIM], 1)
    _attend_packed(job, carray(bytes_at(job[KEYS]), page), carray(bytes_at(job[VALUES]), page))


@compiled
def _attend_packed(job: Any, keys: Numbers, values: Numbers) -> None:
    rows = job[NUM_ROWS], job[NUM_HEADS], job[HEAD_DIM]
    attend_packed(
        carray(job, (1,)),
        carray(ints_at(job[WORKS]), (job[NUM_WORKS], 6)),
        carray(ints_at(job[MEMBERS]), (_MANY,)),
        carray(ints_at(job[POSITIONS]), (job[NUM_ROWS],)),
        carray(ints_at(job[TABLE]), (_MANY,)),
        carray(bits_at(job[QUERIES]), rows),
        keys,
        values,
        job[PAGE_TOKENS],
        as_float(job[SCALE]),
        job[WINDOW],
        as_float(job[CAP]),
        carray(bits_at(job[OUT]), rows),
        carray(floats_at(job[PARTS]), (_MANY, job[NUM_HEADS], job[HEAD_DIM] + 2)),
    )


@Job
def attention_float32(job: Any) -> None:
    """attention_float32.attend_float32."""
    page = job[NUM_PAGES], job[NUM_KV_HEADS], job[PAGE_TOKENS], job[HEAD_DIM]
    attend_float32(
        carray(job, (1,)),
        carray(ints_at(job[WORKS]), (job[NUM_WORKS], 6)),
        carray(ints_at(job[MEMBERS]), (_MANY,)),
        carray(ints_at(job[POSITIONS]), (job[NUM_ROWS],)),
        carray(ints_at(job[TABLE]), (_MANY,)),
        carray(floats_at(job[QUERIES]), (job[NUM_ROWS], job[NUM_HEADS], job[HEAD_DIM])),
        carray(floats_at(job[KEYS]), page),
        carray(floats_at(job[VALUES]), page),
        as_float(job[SCALE]),
        job[WINDOW],
        as_float(job[CAP]),
        carray(floats_at(job[OUT]), (job[NUM_ROWS], job[NUM_HEADS], job[HEAD_DIM])),
        carray(floats_at(job[PARTS]), (_MANY, job[NUM_HEADS], job[HEAD_DIM] + 2)),
    )


@Job
def combine(job: Any) -> None:
    """Rows that several works made parts of, in bfloat16."""
    size = job[COMBINED_DIM]
    mixed = np.empty(size, np.float32)
    item = take(job)
    while item < job[NUM_ITEMS]:
        row = ints_at(job[SPLITS])[3 * item]
        for head in range(job[COMBINED_HEADS]):
            total = _put_together(carray(job, (COMBINED_DIM + 1,)), item, head, mixed)
            target = job[COMBINED] + 2 * (row * job[COMBINED_HEADS] + head) * size
            narrow(mixed.ctypes.data, np.float32(1.0) / total, target, size // TILE)
        item = take(job)


@Job
def combine_float32(job: Any) -> None:
    """Rows that several works made parts of, in float32."""
    size = job[COMBINED_DIM]
    mixed = np.empty(size, np.float32)
    item = take(job)
    while item < job[NUM_ITEMS]:
        row = ints_at(job[SPLITS])[3 * item]
        for head in range(job[COMBINED_HEADS]):
            total = _put_together(carray(job, (COMBINED_DIM + 1,)), item, head, mixed)
            out = carray(floats_at(job[COMBINED] + 4 * (row * job[COMBINED_HEADS] + head) * size), (size,))
            for i in range(size):
                out[i] = mixed[i] / total
        item = take(job)


@compiled
def _put_together(job: npt.NDArray[np.int64], item: int, head: int, mixed: npt.NDArray[np.float32]) -> np.float32:
    """mixed[D]: the sums of a split row's parts for one head, to a common peak; their total (arXiv 2112.05682)."""
    splits, listed, size = ints_at(job[SPLITS]), ints_at(job[LISTED]), job[COMBINED_DIM]
    row_bytes = 4 * job[COMBINED_HEADS] * (size + 2)
    first, count = splits[3 * item + 1], splits[3 * item + 2]
    peak, total = HIDDEN32, np.float32(0.0)
    for i in range(first, first + count):
        part = floats_at(job[SPLIT_PARTS] + listed[i] * row_bytes + 4 * head * (size + 2))
        peak = max(peak, part[size])
    mixed[:] = np.float32(0.0)
    for i in range(first, first + count):
        part = floats_at(job[SPLIT_PARTS] + listed[i] * row_bytes + 4 * head * (size + 2))
        weight = np.float32(math.exp(part[size] - peak))
        total += weight * part[size + 1]
        for d in range(size):
            mixed[d] += weight * part[d]
    return total


JOBS = {
    torch.bfloat16: (attention_bf16, combine),
    torch.int8: (attention_int8, combine),
    torch.float32: (attention_float32, combine_float32),
}
"""By what pages hold."""
