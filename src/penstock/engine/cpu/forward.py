"""A decoder over KV pages of its own: by its plan where it has one, else op by op.

In: a step's batch; out: hidden states, and logits of some rows where the plan multiplies by the head, too.
Blocking; called from one thread at a time.  Owns the pages, and knows no sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from penstock.engine.cpu.batch import StepBatch
from penstock.engine.cpu.fast_attention import make_attention
from penstock.engine.cpu.pages import PageShape
from penstock.engine.cpu.planned import planned_step
from penstock.models.attention import Attend
from penstock.models.decoder import Decoder
from penstock.models.fast.step import StepOutputs
from penstock.models.low_rank import adapting

StepAttention = Callable[[StepBatch], Attend]
"""Makes one step's attention; whoever made it keeps the pages."""
MakeAttention = Callable[[PageShape, Collection[int | None]], StepAttention]
"""Allocates pages for layers with these windows.  Raises ``insufficient_memory``."""


class Forward:
    """One decoder and its pages.  ``planned``: what computes its steps in one call; ``None``: op by op."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype,
        attention: MakeAttention = make_attention,
    ) -> None:
        """``dtype`` is that of keys and values.  Raises ``insufficient_memory`` when the pages cannot be had."""
        config = decoder.config
        shape = PageShape(
            num_layers=config.num_layers,
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=dtype,
        )
        self.decoder = decoder
        self.attention = attention(shape, {layer.window for layer in config.layers})
        self.planned = planned_step(decoder, self.attention)

    def compute(self, batch: StepBatch, rows: list[int], best: bool) -> StepOutputs:
        """Hidden states of the batch; where the plan does it, logits of the first LOGITS_ROWS of ``rows``, and their
        ``best`` tokens if wanted.
        """
        if self.planned is not None and (self.planned.adapts or not batch.adapted):
            return self.planned.compute(batch, rows, best)
        adapt = adapting(self.decoder.ops, batch.adapted) if batch.adapted else None
        return StepOutputs(self.decoder(batch.token_ids, batch.positions, self.attention(batch), adapt))
