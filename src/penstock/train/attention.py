"""Causal attention within each document of packed rows: one masked call for a whole batch.

In: which document each token of each row belongs to; out: an attention for the decoder.
Same values as models.attention.packed_causal, which calls once per document and is slow for hundreds of short ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.models.attention import Attend, AttentionSpec, mix, visible


def isolated_rows(segments: Tensor) -> Attend:
    """For segments[B, R]: a token sees itself and the earlier tokens of its document in its row, nothing else.

    Padding sees itself and earlier padding, so that no softmax is empty.  Computed in float32: on CPUs the backward
    pass of torch's bfloat16 kernel takes more than twice as long.
    """
    num_rows, row_tokens = segments.shape
    same = segments.unsqueeze(2) == segments.unsqueeze(1)
    places = torch.arange(row_tokens)
    masks: dict[int | None, Tensor] = {}

    def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if spec.window not in masks:
            masks[spec.window] = (same & visible(places, places, spec.window)).unsqueeze(1)
        queries, keys, values = (x.float().view(num_rows, row_tokens, *x.shape[1:]).transpose(1, 2) for x in (q, k, v))
        mixed = mix(spec, queries, keys, values, masks[spec.window])
        return mixed.transpose(1, 2).flatten(0, 1).to(q.dtype)

    return attend
