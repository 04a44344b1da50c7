"""What a KV block's content is called: a hash chain over typed fields.

In: token ids and the identity of whoever may share them; out: one 16-byte key per full block.
Two blocks with the same key hold the same keys and values, for the same tenant, adapter and weights.
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

_KEY_BYTES = 16


def prefix_root(*, cache_salt: str = "", adapter: str = "", weight_version: int = 0) -> bytes:
    """Start of the chain.  Every field is tagged and length-prefixed, so that no two sets of fields collide."""
    digest = blake2b(digest_size=_KEY_BYTES)
    for tag, value in (("salt", cache_salt), ("adapter", adapter), ("weights", str(weight_version))):
        data = value.encode()
        digest.update(f"{tag}:{len(data)}:".encode() + data)
    return digest.digest()


def extend_chain(keys: list[bytes], root: bytes, token_ids: list[int], num_blocks: int, block_tokens: int) -> None:
    """Append the keys of blocks ``len(keys) .. num_blocks - 1``; about a microsecond per block."""
    previous = keys[-1] if keys else root
    for block in range(len(keys), num_blocks):
        tokens = array("q", token_ids[block * block_tokens : (block + 1) * block_tokens])
        previous = blake2b(tokens.tobytes(), digest_size=_KEY_BYTES, key=previous).digest()
        keys.append(previous)
