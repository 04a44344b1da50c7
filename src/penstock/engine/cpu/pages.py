"""The memory behind KV block ids.

In: block ids and slots, keys and values; out: per-layer tensors ``[block, KV head, slot, head_dim]``.
Knows no sequences: who owns which block is engine/kv_cache.py's business.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from penstock.models.fast.pages import vector_bytes
from penstock.wire.errors import Problem


@dataclass(frozen=True, slots=True)
class PageShape:
    """How many layers of how many pages, and what one page of a layer holds."""

    num_layers: int
    num_blocks: int
    block_tokens: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Of keys and values together."""
        vectors = 2 * self.num_layers * self.num_blocks * self.num_kv_heads * self.block_tokens
        return vectors * vector_bytes(self.dtype, self.head_dim)

    def allocate(self, *page: int) -> list[Tensor]:
        """A tensor [num_blocks, *page] per layer, not initialised; the system commits what is first written.

        Raises ``insufficient_memory`` when the system refuses the address space.
        """
        try:
            return [torch.empty((self.num_blocks, *page), dtype=self.dtype) for _ in range(self.num_layers)]
        except RuntimeError as error:
            raise Problem(
                "insufficient_memory",
                f"The system refused {self.num_bytes:,} bytes for {self.num_blocks:,} KV blocks of "
                f"{self.block_tokens} tokens.",
            ) from error


class KvPages:
    """Keys and values of every layer.  A block is one page: ``[num_kv_heads, block_tokens, head_dim]``, contiguous.

    Slots of a page that follow its last written one are zero (see :meth:`write`): attention may read them masked,
    and nothing left behind by the page's last owner, a NaN say, can reach the next one.
    """

    def __init__(self, shape: PageShape) -> None:
        """Raises ``insufficient_memory``."""
        page = shape.num_kv_heads, shape.block_tokens, shape.head_dim
        self.keys = shape.allocate(*page)
        self.values = shape.allocate(*page)

    def write(self, layer: int, k: Tensor, v: Tensor, pages: Tensor, slots: Tensor, opened: Tensor) -> None:
        """Store k, v [T, Hkv, D] at pages[T], slots[T]; zero the pages ``opened`` first.

        ``opened`` are the pages whose first slot is among those written and whose last is not.
        """
        for cache, new in ((self.keys[layer], k), (self.values[layer], v)):
            if len(opened):
                cache.index_fill_(0, opened, 0.0)
            cache[pages, :, slots] = new
