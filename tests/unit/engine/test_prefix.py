"""Prefix keys: what may be shared and what may not."""

from __future__ import annotations

from penstock.engine.prefix import extend_chain, prefix_root


def keys_of(tokens: list[int], root: bytes, num_blocks: int) -> list[bytes]:
    keys: list[bytes] = []
    extend_chain(keys, root, tokens, num_blocks, block_tokens=2)
    return keys


def test_every_field_of_the_root_separates() -> None:
    """Tenants, adapters and weight versions never share a key, even where one field's text imitates another's."""
    roots = {
        prefix_root(),
        prefix_root(cache_salt="a"),
        prefix_root(adapter="a"),
        prefix_root(cache_salt="a", adapter="a"),
        prefix_root(cache_salt="aadapter:1:a"),
        prefix_root(weight_version=1),
    }

    assert len(roots) == 6


def test_a_key_names_everything_before_it() -> None:
    """Equal blocks behind different prefixes have different keys; equal prefixes have equal keys."""
    root = prefix_root()

    assert keys_of([1, 2, 3, 4], root, 2)[0] == keys_of([1, 2, 9, 9], root, 2)[0]
    assert keys_of([1, 2, 3, 4], root, 2)[1] != keys_of([5, 6, 3, 4], root, 2)[1]


def test_a_chain_grows_without_being_recomputed() -> None:
    """Extending in two goes gives the keys of extending in one."""
    root = prefix_root()
    keys = keys_of([1, 2, 3, 4], root, 1)
    extend_chain(keys, root, [1, 2, 3, 4], 2, block_tokens=2)

    assert keys == keys_of([1, 2, 3, 4], root, 2)
