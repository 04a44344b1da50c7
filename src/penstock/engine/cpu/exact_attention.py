"""Attention over KV pages in the one order of exact mode, for decodes and prefill chunks alike.

In: rotated queries and keys, and values, of all rows; out: the mixed values.  Writes keys and values into the pages.
"""

from __future__ import annotations

from torch import Tensor

from penstock.engine.cpu.batch import StepBatch
from penstock.engine.cpu.pages import KvPages
from penstock.models.attention import AttentionSpec
from penstock.models.exact.attention import attend_pages


class ExactAttention:
    """An ``Attend`` of the decoder, bound to one step: (spec, q[T, Hq, D], k, v[T, Hkv, D]) -> [T, Hq, D]."""

    def __init__(self, pages: KvPages, batch: StepBatch) -> None:
        self._pages = pages
        self._batch = batch

    def __call__(self, spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        pages, batch = self._pages, self._batch
        pages.write(spec.layer, k, v, batch.pages, batch.slots, batch.opened)
        return attend_pages(spec, batch.spans, batch.table, q, pages.keys[spec.layer], pages.values[spec.layer])
