"""Compiling exact mode's kernels ahead of the first request.

In: nothing; out: nothing, after some ten seconds the first time on a machine and a fraction of one afterwards.
"""

from __future__ import annotations

import torch

from penstock.models.attention import AttentionSpec
from penstock.models.exact.attention import packed_exact
from penstock.models.exact.ops import EXACT


def compile_kernels() -> None:
    """Call every kernel once with each kind of input that it is ever called with."""
    row = torch.ones(1, 4)
    cos, sin = EXACT.rotation(torch.zeros(1, dtype=torch.int64), torch.ones(2))
    EXACT.rope(row.view(1, 1, 4), row.view(1, 1, 4), cos, sin)
    EXACT.norm(row, row[0], 1e-6, 0.0)
    EXACT.gated_activation(row, "silu")
    EXACT.softcap(row, 1.0)
    EXACT.log_normaliser(row)
    for dtype in (torch.float32, torch.bfloat16):
        heads = row.view(1, 1, 4).to(dtype)
        packed_exact([1])(AttentionSpec(layer=0, scale=1.0), heads, heads, heads)
