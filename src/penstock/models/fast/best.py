"""The best token of each row of logits, in one pass over them.

In: logits; out: token ids.  The first of equals, frequent in bfloat16, wins.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from penstock.models.fast.cpu import has
from penstock.models.fast.row_parts import arg_max, ints_at
from penstock.models.fast.team import NUM_ITEMS, Job, take

_LANES = 16


def best_tokens(logits: Tensor) -> Tensor:
    """Of logits[R, V]: [R] int64.  A row that holds no number but NaN has token 0."""
    num_rows, size = logits.shape
    suits = logits.dtype == torch.float32 and logits.stride(1) == 1 and size % _LANES == 0
    if not suits or not has("avx2"):
        return logits.argmax(dim=-1)
    token_ids = torch.empty(num_rows, dtype=torch.int64)
    BEST.run(num_rows, logits.data_ptr(), 4 * logits.stride(0), size // _LANES, token_ids.data_ptr())
    return token_ids


def _best(job: Any) -> None:
    """Arguments: logits, bytes from row to row, registers of a row, ids.  Items are rows."""
    token_ids = ints_at(job[5])
    row = take(job)
    while row < job[NUM_ITEMS]:
        token_ids[row] = arg_max(job[2] + row * job[3], job[4])
        row = take(job)


BEST = Job(_best)
