"""What a model needs in memory, and how many KV blocks fit."""

from __future__ import annotations

from functools import partial

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from penstock.cost.memory import (
    KV_SHARE_OF_FREE,
    KvNeeds,
    copies_room_bytes,
    kv_blocks,
    kv_bytes_per_token,
    weights_bytes,
    workspace_bytes,
)
from penstock.wire.errors import Problem

QWEN3_06B = KvNeeds(
    block_tokens=32, bytes_per_token=kv_bytes_per_token(28, 8, 128 * 2), context_tokens=4096, max_num_seqs=256
)


def test_qwen3_06b_takes_112_kib_of_kv_per_token_in_bf16() -> None:
    """Keys and values of one token are 2 * layers * KV heads * head dim numbers."""
    assert QWEN3_06B.bytes_per_token == 112 * 1024


def test_weights_are_counted_in_bytes() -> None:
    """A parameter in bf16 takes two bytes."""
    assert weights_bytes(596_049_920, 2) == 1_192_099_840


def test_an_override_is_divided_into_whole_blocks() -> None:
    """With explicit KV memory the number of blocks is that memory over a block's bytes, rounded down."""
    asked = 100 * QWEN3_06B.block_bytes + QWEN3_06B.block_bytes // 2
    assert kv_blocks(QWEN3_06B, free_bytes=10**10, override_bytes=asked) == 100


def test_no_more_blocks_than_could_ever_be_used() -> None:
    """On a machine with memory to spare the cache stops at max_num_seqs full contexts."""
    needs = KvNeeds(block_tokens=32, bytes_per_token=1000, context_tokens=100, max_num_seqs=3)
    assert kv_blocks(needs, free_bytes=10**12) == 3 * 4


def test_an_override_that_is_not_free_is_refused_with_both_numbers() -> None:
    """Asking for more KV memory than is free names what was asked for and what there is."""
    with pytest.raises(Problem, match=r"8,000\.0 MB were asked for .* only 2,000\.0 MB") as raised:
        kv_blocks(QWEN3_06B, free_bytes=2 * 10**9, override_bytes=8 * 10**9)
    assert raised.value.code == "insufficient_memory"
    assert raised.value.param == "kv_memory"


@pytest.mark.parametrize("override_bytes", [None, 1_000_000])
def test_room_for_less_than_a_short_sequence_is_refused_with_both_numbers(override_bytes: int | None) -> None:
    """A cache that could not hold 256 tokens is a problem that states what is needed and what there is."""
    with pytest.raises(Problem, match=r"at least 29\.4 MB .* 256 tokens, but") as raised:
        kv_blocks(QWEN3_06B, free_bytes=20_000_000, override_bytes=override_bytes)
    assert raised.value.code == "insufficient_memory"


@given(
    free_bytes=st.integers(0, 10**12),
    share=st.floats(0.01, 1.0),
    workspace=st.integers(0, 10**9),
    block_tokens=st.integers(1, 128),
    context_tokens=st.integers(1, 100_000),
)
def test_the_cache_fits_the_share_and_holds_a_short_sequence(
    free_bytes: int, share: float, workspace: int, block_tokens: int, context_tokens: int
) -> None:
    """The cache fits into nine tenths of the share beside the workspace, or a problem says that it does not."""
    needs = KvNeeds(block_tokens=block_tokens, bytes_per_token=4096, context_tokens=context_tokens, max_num_seqs=16)
    room = int(free_bytes * share * 0.9) - workspace
    if room < -(-min(context_tokens, 256) // block_tokens) * needs.block_bytes:
        with pytest.raises(Problem, match="at least"):
            kv_blocks(needs, free_bytes=free_bytes, share=share, workspace=workspace)
        return
    blocks = kv_blocks(needs, free_bytes=free_bytes, share=share, workspace=workspace)
    assert blocks * needs.block_bytes <= room
    assert min(context_tokens, 256) <= blocks * block_tokens
    assert blocks <= 16 * needs.blocks_per_context


def test_the_workspace_covers_the_logits_of_a_large_vocabulary() -> None:
    """Sampling 64 rows over 151,936 tokens needs three float32 copies of the logits."""
    workspace = workspace_bytes(
        step_tokens=512,
        hidden_size=1024,
        intermediate_size=3072,
        context_tokens=4096,
        vocab_size=151_936,
        logits_rows=64,
    )
    assert workspace > 3 * 64 * 151_936 * 4


def test_capped_scores_need_their_own_workspace() -> None:
    """Gemma 2 (9B) has two query heads per KV head and two masks: eight times a chunk against a whole context."""
    sizes = {"step_tokens": 512, "hidden_size": 3584, "intermediate_size": 14336, "vocab_size": 256_000}
    plain = workspace_bytes(**sizes, context_tokens=8192, logits_rows=64)
    capped = workspace_bytes(**sizes, context_tokens=8192, logits_rows=64, num_masks=2, capped_heads=2)
    assert capped - plain == (8 - 1) * 512 * 8192 * 4


def test_copies_take_half_of_what_an_engines_share_leaves() -> None:
    """Of 10 GB for two engines: 5, less 1 for adapters and the 2 that were asked for, or the 0.133 GB that must be."""
    room_bytes = partial(copies_room_bytes, QWEN3_06B, free_bytes=10**10, adapters_bytes=10**9, share=0.5)
    assert room_bytes(workspace=0, override_bytes=2 * 10**9) == 10**9
    least = 256 * 112 * 1024
    assert room_bytes(workspace=60_000_000 - least) == (4 * 10**9 - 133_333_334) // 2
    assert room_bytes(workspace=0, override_bytes=4 * 10**9) == 0
    assert room_bytes(workspace=0, override_bytes=9 * 10**9) == 0


@given(
    free_bytes=st.integers(2 * 10**9, 10**10),
    engines=st.integers(1, 4),
    workspace=st.integers(0, 2 * 10**8),
    adapters_bytes=st.integers(0, 10**8),
    override_bytes=st.none() | st.integers(3 * 10**7, 4 * 10**9),
)
def test_what_starts_without_copies_starts_with_them(
    free_bytes: int, engines: int, workspace: int, adapters_bytes: int, override_bytes: int | None
) -> None:
    """Also where every engine has made its copies before any of them takes its KV memory."""

    def blocks(free_bytes: int) -> int:
        share = KV_SHARE_OF_FREE / engines
        free_bytes -= adapters_bytes
        return kv_blocks(
            QWEN3_06B, free_bytes=free_bytes, share=share, workspace=workspace, override_bytes=override_bytes
        )

    try:
        blocks(free_bytes)
    except Problem:
        assume(False)
    copies = copies_room_bytes(
        QWEN3_06B,
        free_bytes=free_bytes,
        adapters_bytes=adapters_bytes,
        share=1 / engines,
        workspace=workspace,
        override_bytes=override_bytes,
    )
    assert blocks(free_bytes - engines * copies) > 0
