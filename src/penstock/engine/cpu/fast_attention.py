"""Attention over KV pages by the compiled kernels, where the machine and the model allow them.

In: rotated queries and keys, and values, of all rows; out: the mixed values.  Writes keys and values into the pages.
Argued in docs/decisions/020-the-fast-step.md.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from penstock.engine.cpu.attention import TorchAttention
from penstock.engine.cpu.batch import StepBatch
from penstock.engine.cpu.pages import PageShape
from penstock.models.attention import Attend, AttentionSpec
from penstock.models.fast import attention as fast
from penstock.models.fast.pages import page_shape
from penstock.models.fast.works import Works, attention_works


def make_attention(shape: PageShape, windows: Collection[int | None]) -> FastAttention | TorchAttention:
    """The fastest attention for such pages on this machine.  Raises ``insufficient_memory``."""
    if fast.suits(shape.dtype, shape.head_dim, shape.block_tokens):
        return FastAttention(shape, windows)
    assert shape.dtype.is_floating_point, "whoever asks for bytes has to know that they suit"
    return TorchAttention(shape, windows)


class PackedPages:
    """Keys and values of every layer as the kernels read them; nothing a page held before reaches a result."""

    def __init__(self, shape: PageShape) -> None:
        """Raises ``insufficient_memory``."""
        page = page_shape(shape.dtype, shape.num_kv_heads, shape.block_tokens, shape.head_dim)
        self.keys, self.values = shape.allocate(*page), shape.allocate(*page)


class FastAttention:
    """One step's attention after another's, over pages of its own."""

    def __init__(self, shape: PageShape, windows: Collection[int | None]) -> None:
        self.pages = PackedPages(shape)
        self.block_tokens = shape.block_tokens
        self._shape = shape

    def __call__(self, batch: StepBatch) -> Attend:
        """(spec, q[T, Hq, D], k, v[T, Hkv, D]) -> [T, Hq, D] for the rows of ``batch``."""
        pages, slots, positions = batch.pages.numpy(), batch.slots.numpy(), batch.positions.numpy()
        works: dict[int | None, Works] = {}

        def attend(spec: AttentionSpec, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            if spec.window not in works:
                heads = fast.heads(q, self._shape.num_kv_heads)
                works[spec.window] = attention_works(
                    batch.spans, batch.num_decodes, batch.table, self._shape.block_tokens, spec.window, heads
                )
            keys, values = self.pages.keys[spec.layer], self.pages.values[spec.layer]
            fast.write(pages, slots, k, v, keys, values)
            return fast.attend(spec, works[spec.window], positions, batch.table, q, keys, values)

        return attend
