"""Hidden states to embeddings, over as many steps as a prompt takes.

In: the hidden states of a step; out: bytes per pooled sequence, finished vectors or what the next step goes on from.
Computed in float32 whatever the model's dtype; keeps nothing itself, so that a preempted prompt simply starts again.
"""

from __future__ import annotations

from collections.abc import Sequence as Items

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from penstock.engine.sequence import Pooling, Sequence, StepPlan


def pool(plan: StepPlan, offsets: Items[int], hidden: Tensor) -> dict[int, bytes | None]:
    """``StepResult.pooled`` for hidden[T, H], in which sequence ``i`` has its rows from ``offsets[i]`` on."""
    pooled: dict[int, bytes | None] = {}
    for i, sequence in enumerate(plan.sequences):
        if sequence.pooling is None:
            continue
        state = _state(sequence, plan.starts[i], hidden[offsets[i] : offsets[i] + plan.counts[i]])
        pooled[i] = _vector(state, sequence.pooling, sequence.num_tokens) if plan.reaches_end(i) else _bytes(state)
    return pooled


def _state(sequence: Sequence, start: int, rows: Tensor) -> Tensor:
    """[H] float32: the sum so far (``mean``), the first row (``cls``) or the latest one (``last``)."""
    assert sequence.pooling is not None
    if sequence.pooling.rows == "last":
        return rows[-1].float()
    if sequence.pooling.rows == "cls":
        return rows[0].float() if start == 0 else _earlier(sequence)
    # One row after the other, so that a prompt in parts has the very bits of a prompt in one.
    total = torch.zeros(rows.shape[1]) if start == 0 else _earlier(sequence)
    sums = np.add.accumulate(torch.cat((total[None], rows.float())).numpy(), axis=0)
    return torch.from_numpy(sums[-1])


def _earlier(sequence: Sequence) -> Tensor:
    assert sequence.pooled is not None, "a later chunk without the earlier ones' state"
    return torch.frombuffer(bytearray(sequence.pooled), dtype=torch.float32)


def _vector(state: Tensor, pooling: Pooling, num_tokens: int) -> bytes | None:
    if pooling.rows == "mean":
        state = state / num_tokens
    state = state[: pooling.num_dimensions]
    if pooling.normalize:
        state = F.normalize(state, dim=0)
    return _bytes(state) if bool(state.isfinite().all()) else None


def _bytes(vector: Tensor) -> bytes:
    # Little-endian on every machine: the bytes go to clients as they are.
    return vector.contiguous().numpy().astype("<f4", copy=False).tobytes()
