"""The one layout of packed weights: [O / 16][I / k][16][k], with k values of 4 bytes together.

In: rows of a matrix; out: rows of it again, or its bytes in the layout.  A vector register then holds, for 16 outputs,
the k inputs that one dot-product instruction takes; a tile of AMX holds 16 registers that follow one another.
Outputs and inputs are filled up with zeros to whole blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 16
"""Outputs of one block: float32 or int32 values of a register."""


def new_blocks(num_rows: int, num_inputs: int, dtype: torch.dtype) -> Tensor:
    """[O / 16, I / k, 16, k] for k of 4 // itemsize; O and I rounded up.  Zeros where no row will be put.

    The rest is not written, so that its memory is first touched by the threads that put rows there.
    """
    together = 4 // dtype.itemsize
    blocks = torch.empty(-(-num_rows // BLOCK), -(-num_inputs // together), BLOCK, together, dtype=dtype)
    if num_rows % BLOCK:
        blocks[-1].zero_()
    return blocks


def put(blocks: Tensor, start: int, rows: Tensor) -> None:
    """rows[R, I] of the blocks' dtype as rows ``start`` .. of the matrix."""
    short = blocks.shape[1] * blocks.shape[3] - rows.shape[1]
    if short:
        rows = torch.nn.functional.pad(rows, (0, short))
    words = rows.contiguous().view(torch.int32)
    target = blocks.view(torch.int32).squeeze(-1)
    at, end = start, start + len(rows)
    while at < end:
        block, lane = divmod(at, BLOCK)
        whole = (end - at) // BLOCK
        if lane == 0 and whole:
            taken = whole * BLOCK
            part = words[at - start : at - start + taken].view(whole, BLOCK, -1)
            target[block : block + whole].copy_(part.transpose(1, 2))
        else:
            taken = min(BLOCK - lane, end - at)
            target[block, :, lane : lane + taken] = words[at - start : at - start + taken].T
        at += taken


def rows(blocks: Tensor, numbers: Tensor, num_inputs: int) -> Tensor:
    """Rows ``numbers`` [T] of the matrix, [T, num_inputs]."""
    words = blocks.view(torch.int32).squeeze(-1)
    found = words[numbers // BLOCK, :, numbers % BLOCK]
    return found.contiguous().view(blocks.dtype)[:, :num_inputs]
