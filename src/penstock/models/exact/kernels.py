"""Compiled loops in which every output is computed in one fixed order from its own row's inputs.

In and out: numpy arrays, no tensors.  torch promises no such order: its SiLU and GELU, say, treat a buffer's last
elements by other instructions than the rest, so a row's bits depend on how many rows lie beside it.
Numba compiles once per machine and keeps the result on disk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import numpy as np
import numpy.typing as npt
from numba import njit

from penstock.models.kept import kept

P = ParamSpec("P")
R = TypeVar("R")
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bits = npt.NDArray[np.unsignedinteger[Any]]

LANES = 16
"""Partial sums of a reduction; a constant, since it decides the order of the additions."""

KEY_TILE = 16
"""Keys that attention takes at a time, counted from position 0: the softmax is rescaled at these borders."""

SILU, GELU, GELU_TANH = 0, 1, 2
"""Kinds of gated activation."""


def _compiled(function: Callable[P, R]) -> Callable[P, R]:
    # Fused multiply-adds are decided while compiling, so they are the same for every row.
    compiled = kept(njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy"))(function)
    return cast(Callable[P, R], compiled)


@_compiled
def norm(x: Floats, weight: Floats, bias: Floats, eps: np.float32, centred: bool, out: Floats) -> None:
    """out[r] = (x[r] - mean) / sqrt(mean square + eps) * weight + bias: x, out [R, N], the others [N] float32.

    Not ``centred``: mean is 0, which makes it RMSNorm.
    """
    num_rows, size = x.shape
    for r in range(num_rows):
        mean = _sum_of_powers(x[r], np.float32(0.0), 1) / np.float32(size) if centred else np.float32(0.0)
        square = _sum_of_powers(x[r], mean, 2) / np.float32(size)
        scale = np.float32(1.0) / np.sqrt(square + eps)
        for i in range(size):
            out[r, i] = (x[r, i] - mean) * scale * weight[i] + bias[i]


@_compiled
def _sum_of_powers(values: Floats, centre: np.float32, power: int) -> np.float32:
    """Sum of (values - centre) ** power, for the powers 1 and 2, in LANES partial sums."""
    lanes = np.zeros(LANES, np.float32)
    whole = len(values) - len(values) % LANES
    for begin in range(0, whole, LANES):
        for lane in range(LANES):
            value = values[begin + lane] - centre
            lanes[lane] += value * value if power == 2 else value
    total = np.float32(0.0)
    for lane in range(LANES):
        total += lanes[lane]
    for i in range(whole, len(values)):
        value = values[i] - centre
        total += value * value if power == 2 else value
    return total


@_compiled
def rotation(positions: Ints, frequencies: Floats, cos: Floats, sin: Floats) -> None:
    """cos[t, i], sin[t, i] of positions[t] * frequencies[i]: positions [T] int64, the others float32 [T, F]."""
    for t in range(len(positions)):
        position = np.float32(positions[t])
        for i in range(len(frequencies)):
            angle = position * frequencies[i]
            cos[t, i] = math.cos(angle)
            sin[t, i] = math.sin(angle)


@_compiled
def rotate(x: Floats, cos: Floats, sin: Floats, out: Floats) -> None:
    """out = x * cos + (x with its halves swapped) * sin in the first R of D dimensions, the others as they are.

    x, out [T, H, D]; cos, sin [T, R], all float32.
    """
    num_tokens, num_heads, head_dim = x.shape
    num_rotated = cos.shape[1]
    half = num_rotated // 2
    for t in range(num_tokens):
        for h in range(num_heads):
            for i in range(half):
                first, second = x[t, h, i], x[t, h, half + i]
                out[t, h, i] = first * cos[t, i] + second * sin[t, i]
                out[t, h, half + i] = second * cos[t, half + i] + first * sin[t, half + i]
            for i in range(num_rotated, head_dim):
                out[t, h, i] = x[t, h, i]


@_compiled
def gated(gate_up: Floats, kind: int, out: Floats) -> None:
    """out[t] = activation(first half of gate_up[t]) * second half: gate_up [T, 2I], out [T, I] float32."""
    num_rows, size = out.shape
    for r in range(num_rows):
        for i in range(size):
            gate = gate_up[r, i]
            if kind == SILU:
                gate = gate / (np.float32(1.0) + math.exp(-gate))
            elif kind == GELU:
                gate = np.float32(0.5) * gate * (np.float32(1.0) + math.erf(gate * np.float32(0.7071067811865476)))
            else:
                inner = np.float32(0.7978845608028654) * (gate + np.float32(0.044715) * gate * gate * gate)
                gate = np.float32(0.5) * gate * (np.float32(1.0) + math.tanh(inner))
            out[r, i] = gate * gate_up[r, size + i]


@_compiled
def softcap(x: Floats, cap: np.float32, out: Floats) -> None:
    """out = cap * tanh(x / cap), element by element: x, out [N] float32."""
    for i in range(len(x)):
        out[i] = cap * np.float32(math.tanh(x[i] / cap))


@_compiled
def log_normaliser(logits: Floats, out: Floats) -> None:
    """out[r] = log(sum(exp(logits[r]))): logits [R, V] and out [R] float32."""
    num_rows, size = logits.shape
    for r in range(num_rows):
        peak = logits[r, 0]
        for i in range(1, size):
            peak = max(peak, logits[r, i])
        total = 0.0
        for i in range(size):
            total += np.float64(math.exp(logits[r, i] - peak))
        out[r] = peak + np.float32(math.log(total))


@_compiled
def attend(
    items: Ints,
    table: Ints,
    q: Floats,
    k: Bits,
    v: Bits,
    shift: int,
    scale: np.float32,
    window: int,
    softcap: np.float32,
    out: Floats,
) -> None:
    """Causal attention of some rows to the pages of their sequence, head by head.

    items [I, 5] int64: first row, rows, position of the first row, where its sequence begins in ``table``, KV head.
    table int64: a sequence's pages in order.  q, out [T, Hq, D] float32.
    k, v [P, Hkv, S, D]: bits, to be shifted left by ``shift`` to become those of a float32.
    window, softcap: 0 for none.  Keys are taken in tiles of KEY_TILE from position 0 on, with a running maximum
    (arXiv 2112.05682); tiles that a row does not see are left out for that row alone, which changes none of its bits.
    """
    head_dim = q.shape[2]
    num_kv_heads, page_tokens = k.shape[1], k.shape[2]
    group = q.shape[1] // num_kv_heads
    padded = (head_dim + 3) // 4 * 4
    key_bits = np.zeros((padded, KEY_TILE), np.uint32)
    value_bits = np.zeros((KEY_TILE, head_dim), np.uint32)
    keys, values = key_bits.view(np.float32), value_bits.view(np.float32)
    query = np.zeros(padded, np.float32)
    scores = np.zeros(KEY_TILE, np.float32)
    for item in range(len(items)):
        first_row, num_rows, start, begin, head = items[item]
        end = start + num_rows
        peaks = np.full((num_rows, group), np.float32(-1e30))
        totals = np.zeros((num_rows, group), np.float32)
        mixed = np.zeros((num_rows, group, head_dim), np.float32)
        first_key = max(0, start - window + 1) if window else 0
        for first in range(first_key - first_key % KEY_TILE, end, KEY_TILE):
            _load_tile(k, v, table, begin, head, first, end, page_tokens, shift, key_bits, value_bits)
            for row in range(num_rows):
                last_key = start + row
                row_first_key = max(0, last_key - window + 1) if window else 0
                if first > last_key or first + KEY_TILE <= row_first_key:
                    continue
                for member in range(group):
                    query[:head_dim] = q[first_row + row, head * group + member]
                    _score(query, keys, scores)
                    _cap_and_mask(scores, scale, softcap, row_first_key - first, last_key - first)
                    peaks[row, member], totals[row, member] = _absorb(
                        scores, values, peaks[row, member], totals[row, member], mixed[row, member]
                    )
        for row in range(num_rows):
            for member in range(group):
                for i in range(head_dim):
                    out[first_row + row, head * group + member, i] = mixed[row, member, i] / totals[row, member]


@_compiled
def _load_tile(
    k: Bits,
    v: Bits,
    table: Ints,
    begin: int,
    head: int,
    first: int,
    end: int,
    page_tokens: int,
    shift: int,
    key_bits: Bits,
    value_bits: Bits,
) -> None:
    """Keys transposed to [D, KEY_TILE], values as [KEY_TILE, D]; zero from position ``end`` on."""
    head_dim = value_bits.shape[1]
    for j in range(KEY_TILE):
        position = first + j
        if position < end:
            page, slot = table[begin + position // page_tokens], position % page_tokens
            for i in range(head_dim):
                key_bits[i, j] = np.uint32(k[page, head, slot, i]) << np.uint32(shift)
                value_bits[j, i] = np.uint32(v[page, head, slot, i]) << np.uint32(shift)
        else:
            key_bits[:, j] = 0
            value_bits[j, :] = 0


@_compiled
def _score(query: Floats, keys: Floats, scores: Floats) -> None:
    """scores[j] = sum over i of query[i] * keys[i, j], in order of i; four at a time keep the sums in registers."""
    scores[:] = 0.0
    for i in range(0, len(query), 4):
        a, b, c, d = query[i], query[i + 1], query[i + 2], query[i + 3]
        for j in range(KEY_TILE):
            scores[j] = scores[j] + a * keys[i, j] + b * keys[i + 1, j] + c * keys[i + 2, j] + d * keys[i + 3, j]


@_compiled
def _cap_and_mask(scores: Floats, scale: np.float32, softcap: np.float32, first: int, last: int) -> None:
    """Scale, cap if there is a cap, and hide what lies outside ``first`` .. ``last`` of the tile."""
    for j in range(KEY_TILE):
        score = scores[j] * scale
        if softcap:
            score = softcap * np.float32(math.tanh(score / softcap))
        scores[j] = score if first <= j <= last else np.float32(-np.inf)


@_compiled
def _absorb(
    scores: Floats, values: Floats, peak: np.float32, total: np.float32, mixed: Floats
) -> tuple[np.float32, np.float32]:
    """One tile into a row's running softmax; answers its new peak and total.  Leaves weights in ``scores``."""
    highest = peak
    for j in range(KEY_TILE):
        highest = max(highest, scores[j])
    if highest > peak:
        shrink = np.float32(math.exp(peak - highest))
        total *= shrink
        for i in range(len(mixed)):
            mixed[i] *= shrink
    for j in range(KEY_TILE):
        scores[j] = np.float32(math.exp(scores[j] - highest))
        total += scores[j]
    for j in range(0, KEY_TILE, 4):
        a, b, c, d = scores[j], scores[j + 1], scores[j + 2], scores[j + 3]
        for i in range(len(mixed)):
            mixed[i] = mixed[i] + a * values[j, i] + b * values[j + 1, i] + c * values[j + 2, i] + d * values[j + 3, i]
    return highest, total
