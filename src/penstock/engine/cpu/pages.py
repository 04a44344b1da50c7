"""The memory behind KV block ids.

In: block ids and slots, keys and values; out: per-layer tensors ``[block, KV head, slot, head_dim]``.
Knows no sequences: who owns which block is engine/kv_cache.py's business.
"""

from __future__ import annotations

import torch
from torch import Tensor

from penstock.wire.errors import Problem


class KvPages:
    """Keys and values of every layer.  A block is one page: ``[num_kv_heads, block_tokens, head_dim]``, contiguous.

    Pages are not initialised, so the system commits memory only as they are first written.
    Slots of a page that follow its last written one are zero (see :meth:`write`): attention may read them masked,
    and nothing left behind by the page's last owner, a NaN say, can reach the next one.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_blocks: int,
        block_tokens: int,
        num_kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
    ) -> None:
        """Raises ``insufficient_memory`` when the system refuses the address space."""
        shape = (num_blocks, num_kv_heads, block_tokens, head_dim)
        try:
            self.keys = [torch.empty(shape, dtype=dtype) for _ in range(num_layers)]
            self.values = [torch.empty(shape, dtype=dtype) for _ in range(num_layers)]
        except RuntimeError as error:
            num_bytes = 2 * num_layers * num_blocks * num_kv_heads * block_tokens * head_dim * dtype.itemsize
            raise Problem(
                "insufficient_memory",
                f"The system refused {num_bytes:,} bytes for {num_blocks:,} KV blocks of {block_tokens} tokens.",
            ) from error
        self.block_tokens = block_tokens

    def write(self, layer: int, k: Tensor, v: Tensor, pages: Tensor, slots: Tensor, opened: Tensor) -> None:
        """Store k, v [T, Hkv, D] at pages[T], slots[T]; zero the pages ``opened`` first.

        ``opened`` are the pages whose first slot is among those written and whose last is not.
        """
        for cache, new in ((self.keys[layer], k), (self.values[layer], v)):
            if len(opened):
                cache.index_fill_(0, opened, 0.0)
            cache[pages, :, slots] = new
