"""The block pool: leases, the cache behind them, and the order of eviction."""

from __future__ import annotations

import pytest

from penstock.engine.kv_cache import BlockPool


def test_a_returned_block_without_content_is_leased_first() -> None:
    """What nobody could hit again is reused before anything cached is evicted."""
    pool = BlockPool(4)
    first, second = pool.lease(2)
    pool.register(first, b"a")
    pool.give_back([first, second])

    assert pool.lease(1) == [second]
    pool.check()


def test_the_least_recently_used_chain_loses_its_leaf_first() -> None:
    """Eviction takes the oldest chain, and of it the last block, so that the rest can still be hit."""
    pool = BlockPool(4)
    old = pool.lease(2)
    for block, key in zip(old, (b"old-0", b"old-1"), strict=True):
        pool.register(block, key)
    young = pool.lease(2)
    for block, key in zip(young, (b"young-0", b"young-1"), strict=True):
        pool.register(block, key)
    pool.give_back(old)
    pool.give_back(young)

    pool.lease(1)

    assert pool.find([b"old-0", b"old-1"]) == ([old[0]], 1)
    assert pool.find([b"young-0", b"young-1"]) == (young, 2)
    pool.check()


def test_a_shared_block_stays_until_its_last_reader_returns_it() -> None:
    """Two leases of one cached block need two returns."""
    pool = BlockPool(2)
    (block,) = pool.lease(1)
    pool.register(block, b"key")
    pool.share([block])
    pool.give_back([block])

    assert pool.num_used == 1
    pool.give_back([block])
    assert (pool.num_used, pool.num_cached, pool.num_free) == (0, 1, 1)
    pool.check()


def test_returning_twice_is_our_bug_and_says_so() -> None:
    """A double return is caught at once, before two sequences can own one block."""
    pool = BlockPool(2)
    leased = pool.lease(1)
    pool.give_back(leased)

    with pytest.raises(AssertionError, match="returned twice"):
        pool.give_back(leased)


def test_find_stops_at_the_first_miss() -> None:
    """A later block of a chain is of no use without the ones before it."""
    pool = BlockPool(3)
    blocks = pool.lease(3)
    pool.register(blocks[0], b"0")
    pool.register(blocks[2], b"2")

    assert pool.find([b"0", b"1", b"2"]) == (blocks[:1], 0)
