"""Attention over KV pages in the one order of exact mode, for decodes and prefill chunks alike.

In: rotated queries and keys, and values, of all rows; out: the mixed values.  Writes keys and values into the pages.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from penstock.engine.cpu.batch import StepBatch
from penstock.engine.cpu.pages import KvPages, PageShape
from penstock.models.attention import Attend, AttentionSpec
from penstock.models.exact.attention import attend_pages


class ExactAttention:
    """One step's attention after another's, over pages of its own."""

    def __init__(self, shape: PageShape, windows: Collection[int | None]) -> None:
        self.pages = KvPages(shape)

    def __call__(self, batch: StepBatch) -> Attend:
        """(spec, q[T, Hq, D], k, v[T, Hkv, D]) -> [T, Hq, D] for the rows of ``batch``."""
        pages = self.pages

        def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            pages.write(spec.layer, k, v, batch.pages, batch.slots, batch.opened)
            return attend_pages(spec, batch.spans, batch.table, q, pages.keys[spec.layer], pages.values[spec.layer])

        return attend
