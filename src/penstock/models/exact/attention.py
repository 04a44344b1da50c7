"""Attention in one order: the same kernel for a prompt, a chunk, a decode step and a training row.

In: rotated queries, and keys and values in pages; out: the mixed values.  A sequence that lies end to end with others,
as in training, is one whose pages hold one token each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from penstock.models.attention import Attend, AttentionSpec, packed_causal
from penstock.models.exact import kernels
from penstock.models.exact.ops import floats, with_gradient_of
from penstock.models.threads import num_parts, run_all

Ints = npt.NDArray[np.int64]

_ITEM_ROWS = 64
"""Rows that share one reading of their keys; bounds a kernel's scratch memory."""


def packed_exact(lengths: Sequence[int]) -> Attend:
    """What :func:`~penstock.models.attention.packed_causal` computes, exactly, with that function's gradient."""
    sizes = np.array(lengths, dtype=np.int64)
    begins = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    table = np.arange(int(sizes.sum()), dtype=np.int64)
    chunks = np.stack([begins, sizes, np.zeros_like(sizes), begins], axis=1)
    plain = packed_causal(lengths)

    def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return attend_pages(spec, chunks, table, q, k.unsqueeze(2), v.unsqueeze(2))

        mixed: Tensor = with_gradient_of(partial(plain, spec), exact)(q, k, v)
        return mixed

    return attend


def attend_pages(spec: AttentionSpec, chunks: Ints, table: Ints, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q[T, Hq, D] against pages k, v [P, Hkv, S, D], which hold the rows' own keys and values already.

    ``chunks`` [C, 4]: first row, number of rows, position of the first row, where its sequence begins in ``table``;
    ``table``: pages, those of a sequence in order.
    """
    rows = floats(q)
    out = np.empty_like(rows)
    items = _items(chunks, num_kv_heads=k.shape[1])
    cost = items[:, 1] * (items[:, 2] + items[:, 1])
    parts = num_parts(len(items), int(cost.sum()) * 2 * q[0].numel() // k.shape[1])
    order = np.argsort(-cost, kind="stable")
    shift = 32 - 8 * k.element_size()
    run = partial(
        kernels.attend,
        table=table,
        q=rows,
        k=_bits(k),
        v=_bits(v),
        shift=shift,
        scale=np.float32(spec.scale),
        window=spec.window or 0,
        softcap=np.float32(spec.softcap or 0.0),
        out=out,
    )
    jobs: list[Callable[[], None]] = [partial(run, items[order[part::parts]]) for part in range(parts)]
    run_all(jobs)
    return torch.from_numpy(out).to(q.dtype)


def _items(chunks: Ints, num_kv_heads: int) -> Ints:
    """One item per KV head and at most _ITEM_ROWS rows of a chunk: [I, 5] as the kernel takes them."""
    cut = [
        (first + at, min(_ITEM_ROWS, count - at), start + at, begin, head)
        for first, count, start, begin in chunks.tolist()
        for at in range(0, count, _ITEM_ROWS)
        for head in range(num_kv_heads)
    ]
    return np.array(cut, dtype=np.int64)


def _bits(x: Tensor) -> npt.NDArray[np.unsignedinteger]:
    """The bits of a bfloat16 or float32 tensor, as they lie in memory."""
    signed = x.detach().contiguous().view(torch.int16 if x.element_size() == 2 else torch.int32)
    return signed.numpy().view(np.uint16 if x.element_size() == 2 else np.uint32)
