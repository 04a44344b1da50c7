"""Paged attention by compiled kernels: keys and values into pages, and what every row makes of those it sees.

In: rotated queries and keys, and values, of all rows of a step; out: the mixed values.
In bfloat16 or int8 pages are packed for the kernels, and AVX2 is needed; in float32 any CPU will do.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penstock.models.attention import AttentionSpec
from penstock.models.fast import attention_jobs as jobs
from penstock.models.fast import bf16
from penstock.models.fast.attention_float32 import store_float32
from penstock.models.fast.page_kernels import store_packed
from penstock.models.fast.pages import TILE, holds_bytes, tokens_of
from penstock.models.fast.team import float_bits
from penstock.models.fast.works import Heads, Works
from penstock.models.threads import over_rows

Array = npt.NDArray[Any]
Ints = npt.NDArray[np.int64]


def suits(dtype: torch.dtype, head_dim: int, page_tokens: int) -> bool:
    """Whether pages of this kind can be attended to here."""
    if dtype == torch.float32:
        return True
    if dtype == torch.int8:
        return holds_bytes(head_dim, page_tokens) and bf16.is_supported()
    return dtype == torch.bfloat16 and head_dim % TILE == page_tokens % TILE == 0 and bf16.is_supported()


def heads(q: Tensor, num_kv_heads: int) -> Heads:
    return Heads(q.shape[1] // num_kv_heads, num_kv_heads, torch.get_num_threads())


def write(pages: Ints, slots: Ints, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> None:
    """Keep k, v [T, Hkv, D] at pages[T], slots[T] of ``keys`` and ``values``."""
    arrays = bits(k), bits(v), bits(keys), bits(values)
    if k.dtype == torch.float32:
        run = partial(store_float32, pages, slots, *arrays)
    else:
        run = partial(store_packed, pages, slots, *arrays, tokens_of(keys, k.shape[2]))
    over_rows(len(k), 16 * k[0].numel(), run)


def attend(
    spec: AttentionSpec, works: Works, positions: Ints, table: Ints, q: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """q[T, Hq, D] of rows at positions[T], against pages that hold the rows' own keys and values already."""
    num_rows, num_heads, head_dim = q.shape
    q, out = q.contiguous(), torch.empty_like(q, memory_format=torch.contiguous_format)
    parts = np.empty((works.num_parts, num_heads, head_dim + 2), np.float32)
    is_packed = q.dtype == torch.bfloat16
    num_units = len(works.works) * keys.shape[1] * (1 if is_packed else num_heads // keys.shape[1])
    attention, together = jobs.JOBS[keys.dtype]
    attention.run(
        num_units,
        works.works.ctypes.data,
        len(works.works),
        works.members.ctypes.data,
        positions.ctypes.data,
        table.ctypes.data,
        q.data_ptr(),
        keys.data_ptr(),
        values.data_ptr(),
        float_bits(spec.scale),
        spec.window or 0,
        float_bits(spec.softcap or 0.0),
        out.data_ptr(),
        parts.ctypes.data,
        num_rows,
        num_heads,
        keys.shape[1],
        head_dim,
        tokens_of(keys, head_dim),
        len(keys),
    )
    if works.num_parts:
        lists = works.splits.ctypes.data, works.listed.ctypes.data
        together.run(len(works.splits), *lists, parts.ctypes.data, out.data_ptr(), num_heads, head_dim)
    return out


def bits(x: Tensor) -> Array:
    """A contiguous tensor as it is, but for bfloat16, which becomes uint16."""
    x = x.contiguous()
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else x.numpy()
