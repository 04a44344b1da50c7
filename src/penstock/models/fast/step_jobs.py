"""The parts of a step between its matrix products, as jobs: rows in float32, fused, rounded once for who takes them.

In: addresses and sizes in a job's arguments, named by the lists below; out: rows.  Items are rows of the batch.
Sizes are multiples of 16.  Rows lie end to end.  *Taken* rows are as the weight that multiplies them wants them, said
by six arguments, TAKEN: where they go, their scales and sums, groups (0: float32, -1: bfloat16), registers of a group
(float32: bytes of a row), and offset.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import carray

from penstock.models.fast.attention_parts import narrow
from penstock.models.fast.byte_parts import quantise_bf16, quantise_float32
from penstock.models.fast.compiled import compiled
from penstock.models.fast.norms import inverse_root, normalise
from penstock.models.fast.row_parts import (
    add_squares,
    as_float,
    copy,
    floats_at,
    gelu,
    gelu_tanh,
    ints_at,
    scaled,
    silu,
    squares,
    widen,
)
from penstock.models.fast.team import NUM_ITEMS, Job, take


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


@compiled
def _hand_on(values: int, size: int, row: int, taken: Any) -> None:
    """``values``, ``size`` float32, as the taken row ``row``, unless they are there already."""
    if taken[3] < 0:
        narrow(values, np.float32(1.0), taken[0] + 2 * size * row, size // 16)
    elif taken[3] > 0:
        sums = taken[2] + 4 * taken[3] * row
        quantise_float32(values, taken[0] + size * row, taken[1] + 4 * row, sums, taken[3], taken[4], taken[5])


@compiled
def _landing(size: int, row: int, taken: Any, spare: int) -> int:
    """Where float32 go that will be handed on: to the taken row itself, if it takes these."""
    return taken[0] + taken[4] * row if taken[3] == 0 else spare


@Job
def add_norm(job: Any) -> None:
    """x += change * factor, and RMSNorm(x) * weight as taken rows: x, change [T, H] and weight [H] float32.

    Arguments: x, change (0: none), factor, weight (0: x as it is), H, eps, TAKEN.
    """
    size, taken = job[6], carray(job, (14,))[8:]
    spare = np.empty(size, np.float32)
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        x = job[2] + 4 * size * row
        if job[3]:
            total = add_squares(x, job[3] + 4 * size * row, as_float(job[4]), size // 16)
        else:
            total = squares(x, size // 16)
        normalised = _landing(size, row, taken, spare.ctypes.data)
        if job[5]:
            scaled(x, job[5], inverse_root(total, size, as_float(job[7])), normalised, size // 16)
        else:
            copy(x, normalised, size // 16)
        _hand_on(normalised, size, row, taken)


@Job
def norm_rows(job: Any) -> None:
    """RMSNorm(rows) * weight in place: rows [T, W] and weight [W] float32.  Arguments: rows, weight, W, eps."""
    size = job[4]
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        normalise(job[2] + 4 * size * row, job[3], size, as_float(job[5]))


@Job
def widen_rows(job: Any) -> None:
    """Rows of bfloat16 [T, W] as float32.  Arguments: from, to, W, bytes of a row there."""
    size = job[4]
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        widen(job[2] + 2 * size * row, job[3] + job[5] * row, size // 16)


@Job
def pick(job: Any) -> None:
    """Rows ``rows[R]`` of hidden states [T, H] bfloat16 for the head: as float32, or as bytes (groups 1).  Items: R.

    Arguments: hidden, rows, H, out, scales, sums, groups, offset, bytes of a row of float32.
    """
    rows, size = ints_at(job[3]), job[4]
    while True:
        i = take(job)
        if i >= job[NUM_ITEMS]:
            return
        source = job[2] + 2 * size * rows[i]
        if job[8] == 0:
            widen(source, job[5] + job[10] * i, size // 16)
        else:
            target_at = job[5] + size * i
            quantise_bf16(source, target_at, job[6] + 4 * i, job[7] + 4 * i, 1, size // 16, job[9])


@Job
def gated_silu(job: Any) -> None:
    """silu(first half of gate_up[T, 2I]) * second half as taken rows; the first half may be lost.

    Arguments: gate_up, I, TAKEN.
    """
    size, taken = job[3], carray(job, (10,))[4:]
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        gate = job[2] + 8 * size * row
        opened = _landing(size, row, taken, gate)
        silu(gate, gate + 4 * size, opened, size // 16)
        _hand_on(opened, size, row, taken)


@Job
def gated_gelu(job: Any) -> None:
    """As gated_silu, with GELU."""
    size, taken = job[3], carray(job, (10,))[4:]
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        gate = job[2] + 8 * size * row
        opened = _landing(size, row, taken, gate)
        gelu(gate, gate + 4 * size, opened, size // 16)
        _hand_on(opened, size, row, taken)


@Job
def gated_gelu_tanh(job: Any) -> None:
    """As gated_silu, with GELU's approximation by tanh."""
    size, taken = job[3], carray(job, (10,))[4:]
    while True:
        row = take(job)
        if row >= job[NUM_ITEMS]:
            return
        gate = job[2] + 8 * size * row
        opened = _landing(size, row, taken, gate)
        gelu_tanh(gate, gate + 4 * size, opened, size // 16)
        _hand_on(opened, size, row, taken)


JOBS = (
    rotation,
    add_norm,
    norm_rows,
    widen_rows,
    pick,
    gated_silu,
    gated_gelu,
    gated_gelu_tanh,
)
