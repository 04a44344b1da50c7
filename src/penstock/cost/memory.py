"""What a model needs in memory, and how much of what is free becomes KV cache.

In: shapes and bytes; out: bytes and counts of blocks.  Pure: what is free is measured by whoever asks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from penstock.wire.errors import Problem

# A CPU's memory is everybody's: unless told otherwise, half of what is free stays with the rest of the machine.
KV_SHARE_OF_FREE = 0.5
# Logits are computed for so many rows at a time: with a vocabulary of 150,000 that bounds them to 40 MB in float32.
LOGITS_ROWS = 64
# Left to the allocator, the tokenizer, Python and the neighbours that grow after we looked.
_RESERVED_SHARE = 0.1
# An engine whose KV cache cannot hold a question and an answer of this length is not worth starting.
SHORT_SEQUENCE_TOKENS = 256


def weights_bytes(num_parameters: int, each_bytes: float) -> int:
    """Bytes of ``num_parameters`` weights of ``each_bytes``, which quantising may make no whole number."""
    return math.ceil(num_parameters * each_bytes)


def kv_bytes_per_token(num_layers: int, num_kv_heads: int, vector_bytes: int) -> int:
    """Bytes of one token's keys and values over all layers, of which each head's has ``vector_bytes``."""
    return 2 * num_layers * num_kv_heads * vector_bytes


def workspace_bytes(
    *,
    step_tokens: int,
    hidden_size: int,
    intermediate_size: int,
    context_tokens: int,
    vocab_size: int,
    logits_rows: int,
    num_masks: int = 1,
    capped_heads: int = 0,
) -> int:
    """Bytes that one step needs beside weights and KV cache, counted in float32 to be on the safe side.

    Activations: about four copies of the residual stream and three of the feed-forward's width per token; for each
    size of window a mask of a prefill chunk against a whole context; and logits with two copies for sampling.
    Where scores are capped, three copies of them exist, for the ``capped_heads`` query heads of one KV head.
    """
    activations = step_tokens * (4 * hidden_size + 3 * intermediate_size)
    scores = step_tokens * context_tokens * (num_masks + 3 * capped_heads)
    logits = 3 * logits_rows * vocab_size
    return 4 * (activations + scores + logits)


@dataclass(frozen=True, slots=True)
class KvNeeds:
    """The shape of the KV cache: tokens per block, bytes per token, and the most that could ever be of use."""

    block_tokens: int
    bytes_per_token: int
    context_tokens: int
    max_num_seqs: int

    @property
    def block_bytes(self) -> int:
        return self.block_tokens * self.bytes_per_token

    @property
    def blocks_per_context(self) -> int:
        return -(-self.context_tokens // self.block_tokens)

    @property
    def least_bytes(self) -> int:
        """Of the blocks of a question and an answer, or of a context that is shorter."""
        return -(-min(self.context_tokens, SHORT_SEQUENCE_TOKENS) // self.block_tokens) * self.block_bytes


def kv_blocks(
    needs: KvNeeds, *, free_bytes: int, share: float = 1.0, workspace: int = 0, override_bytes: int | None = None
) -> int:
    """How many KV blocks to allocate.

    ``free_bytes`` is what the machine has left once the weights are loaded, ``share`` this engine's part of it and
    ``workspace`` what a step needs on top.  ``override_bytes`` is taken as given, as long as it is there at all.
    Never more than ``max_num_seqs`` full contexts.

    Raises ``insufficient_memory``, with both numbers, when a short sequence would not fit or the override is not free.
    """
    if override_bytes is None:
        budget = int(free_bytes * share * (1.0 - _RESERVED_SHARE)) - workspace
        origin = (
            f"{megabytes(max(0, budget))} are left of {megabytes(free_bytes)} free memory"
            f" (this engine's share: {share:.0%}, a step's workspace: {megabytes(workspace)})"
        )
    else:
        budget = override_bytes
        origin = f"{megabytes(override_bytes)} were asked for"
        if override_bytes > free_bytes:
            raise Problem(
                "insufficient_memory",
                f"{origin} as KV memory, but only {megabytes(free_bytes)} are free.",
                param="kv_memory",
            )
    blocks = budget // needs.block_bytes
    if blocks * needs.block_bytes < needs.least_bytes:
        raise Problem(
            "insufficient_memory",
            f"The KV cache needs at least {megabytes(needs.least_bytes)}"
            f" for one sequence of {min(needs.context_tokens, SHORT_SEQUENCE_TOKENS)} tokens, but {origin}.",
            param="kv_memory",
        )
    return min(blocks, needs.max_num_seqs * needs.blocks_per_context)


def copies_room_bytes(
    needs: KvNeeds,
    *,
    free_bytes: int,
    adapters_bytes: int,
    share: float,
    workspace: int,
    override_bytes: int | None = None,
) -> int:
    """What copies of weights that are only faster may take, so that :func:`kv_blocks` is not refused for their sake.

    ``share`` is this engine's part of ``free_bytes``: others may take theirs at the same time.  Half of what is left of
    it beside the adapters' room and either the KV memory that was asked for or the least that does.
    """
    kept = override_bytes
    if kept is None:
        kept = math.ceil((workspace + needs.least_bytes) / (KV_SHARE_OF_FREE * (1.0 - _RESERVED_SHARE)))
    return max(0, int(free_bytes * share) - adapters_bytes - kept) // 2


def megabytes(num_bytes: int) -> str:
    """Bytes in a message: tenths of a megabyte (10^6)."""
    return f"{num_bytes / 1e6:,.1f} MB"
