"""Attention over KV pages for one step's ragged batch, in torch: what any CPU can do.

In: rotated queries and keys, and values, of all rows; out: the mixed values.  Writes keys and values into the pages.
Decodes are one batched computation whatever their lengths; a prefill chunk is one call per sequence.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from penstock.engine.cpu.attention_index import Chunk, DecodeGroup, attention_index
from penstock.engine.cpu.batch import StepBatch
from penstock.engine.cpu.pages import KvPages, PageShape
from penstock.models.attention import Attend, AttentionSpec, causal, mix
from penstock.models.ops import softcap


class TorchAttention:
    """One step's attention after another's, over pages of its own."""

    def __init__(self, shape: PageShape, windows: Collection[int | None]) -> None:
        """``windows``: those of the model's layers."""
        self.pages = KvPages(shape)
        self._shape = shape
        self._windows = windows

    def __call__(self, batch: StepBatch) -> Attend:
        """(spec, q[T, Hq, D], k, v[T, Hkv, D]) -> [T, Hq, D] for the rows of ``batch``."""
        pages = self.pages
        index = attention_index(batch, self._shape.block_tokens, self._shape.dtype, self._windows)

        def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pages.write(spec.layer, k, v, batch.pages, batch.slots, batch.opened)
            mixed = torch.empty_like(q)
            keys, values = pages.keys[spec.layer], pages.values[spec.layer]
            for group in index.decodes[spec.window]:
                mixed[group.rows] = _decode(spec, q[group.rows], keys, values, group)
            for chunk in index.chunks[spec.window]:
                if chunk.mask is None:  # a sequence's first chunk: no page is read
                    mixed[chunk.rows] = causal(spec, q[chunk.rows], k[chunk.rows], v[chunk.rows])
                else:
                    mixed[chunk.rows] = _continued(spec, q[chunk.rows], keys, values, chunk)
            return mixed

        return attend


def _decode(spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, group: DecodeGroup) -> Tensor:
    """One query per sequence, q[B, Hq, D], against its pages.

    Every page is an item of one batched product, with the query heads that share a KV head as its rows; the softmax
    then runs over the items of a sequence (the split of Flash-Decoding, with pages as the splits).  So lengths need
    no padding beyond the last page, and pages that lie together are read in place.  Measured at 16 sequences of some
    200 tokens: a third of the time of copying the pages together for scaled_dot_product_attention.
    """
    num_rows, num_heads, head_dim = q.shape
    num_kv_heads = keys.shape[1]
    if isinstance(group.pages, slice):
        k, v = keys[group.pages], values[group.pages]
    else:
        k, v = keys.index_select(0, group.pages), values.index_select(0, group.pages)
    grouped = q.view(num_rows, num_kv_heads, num_heads // num_kv_heads, head_dim).index_select(0, group.readers)
    scores = torch.matmul(grouped, k.transpose(2, 3)).float()
    scores.mul_(spec.scale)
    if spec.softcap is not None:
        scores = softcap(scores, spec.softcap)
    scores.add_(group.mask)

    # The extra row takes what belongs to nobody.
    owners = group.owners[:, None]
    peak = torch.full((num_rows + 1, num_heads), -torch.inf)
    peak.scatter_reduce_(0, owners.expand(-1, num_heads), scores.amax(-1).view(-1, num_heads), "amax")
    weights = scores.sub_(peak.index_select(0, group.owners).view(*scores.shape[:3], 1)).exp_()
    total = torch.zeros(num_rows + 1, num_heads)
    total.index_add_(0, group.owners, weights.sum(-1).view(-1, num_heads))
    parts = torch.matmul(weights.to(v.dtype), v).float().view(-1, num_heads, head_dim)
    mixed = torch.zeros(num_rows + 1, num_heads, head_dim).index_add_(0, group.owners, parts)
    return (mixed[:num_rows] / total[:num_rows, :, None]).to(q.dtype)


def _continued(spec: AttentionSpec, q: Tensor, keys: Tensor, values: Tensor, chunk: Chunk) -> Tensor:
    """A later chunk: q[T, Hq, D] against the pages of its sequence that it sees, which hold its own keys already."""
    assert chunk.mask is not None
    length = chunk.mask.shape[1]
    k, v = (
        cache.index_select(0, chunk.pages).transpose(0, 1).flatten(1, 2)[:, :length].unsqueeze(0)
        for cache in (keys, values)
    )
    mixed = mix(spec, q.transpose(0, 1).unsqueeze(0), k, v, chunk.mask)
    return mixed.squeeze(0).transpose(0, 1)
